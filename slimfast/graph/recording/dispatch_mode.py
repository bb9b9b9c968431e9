"""Record a forward in a dispatch mode, which sees each ATen operation, and note in which module it ran."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from slimfast.errors import UnsupportedGraph
from slimfast.graph.recording.calls import Call, Ref, SizeOrigins
from slimfast.graph.recording.decisions import Decider
from slimfast.graph.recording.inputs import tensors_in
from slimfast.graph.recording.meta_shortcuts import shortcut_of
from slimfast.graph.recording.network import Network
from slimfast.graph.recording.number_origins import AttributeRead, FoundEqual, LengthRead, Origin
from slimfast.graph.recording.op_registry import entry_of
from slimfast.graph.recording.operators import Operator, bind, operator_of

# A module that is running: its path, its arguments and its keyword arguments.
_Running: TypeAlias = tuple[str, tuple[Any, ...], dict[str, Any]]

# Arguments of these types hold no tensors.
_PLAIN = frozenset({type(None), bool, int, float, str, torch.dtype, torch.device, torch.layout,
                    torch.memory_format})  # fmt: skip


class RecordingLimit(BaseException):
    """Raised when as many operations were recorded as were asked for; no handler in a forward may stop it."""


def _number(tensor: Tensor) -> Any:
    """Read the number that Python made a tensor of; None where the tensor has no data."""
    if tensor.is_meta or type(tensor) is not Tensor:
        return None
    with _disable_current_modes():
        return tensor.item()


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down each ATen operation. It keeps all tensors alive, so that the identity of an object names
    one tensor.

    ``shortcuts``: on tensors without data, take the shapes that
    :mod:`slimfast.graph.recording.meta_shortcuts` knows from there. ``max_operations``: raise
    :class:`RecordingLimit` after that many operations, copies not counted. ``refuse`` is called with each
    tensor when it is first seen, and may raise. ``decider`` runs the operations that decide something by
    values; without one they run as they are.
    """

    def __init__(
        self,
        *,
        shortcuts: bool = False,
        max_operations: int | None = None,
        refuse: Callable[[Tensor], None] = lambda tensor: None,
        decider: Decider | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self.equal: list[FoundEqual] = []
        self._stack: list[_Running] = []
        self._failed: tuple[BaseException, _Running] | None = None
        self._shortcuts = shortcuts
        self._operations_left = max_operations
        self._refuse = refuse
        self._decider = decider
        self._given: SizeOrigins = ()
        self._computed = False
        self._numbers: tuple[int, ...] = ()
        self._einsum = self._einsums = 0
        self._values: dict[int, int] = {}
        self._alive: list[Tensor] = []
        self._made: list[int] = []
        # the lists that Python indexes with, and how many tensors there were before
        self._lists: list[list[int]] = []
        self._known = 0

    @property
    def module(self) -> str:
        """Name the path of the module that is running."""
        return self._stack[-1][0] if self._stack else ""

    def failed_in(self, error: BaseException) -> tuple[str, list[list[int]]]:
        """Name the innermost module that an error came out of, with the shapes it was called with."""
        failed = self._failed
        path, args, kwargs = failed[1] if failed and failed[0] is error else ("", (), {})
        return path, [list(t.shape) for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]

    def value_of(self, tensor: Tensor) -> int:
        """Number a tensor: the same object has the same number."""
        value = self._values.get(id(tensor))
        if value is None:
            if tensor.is_nested:
                where = self.module or "the model itself"
                raise UnsupportedGraph(f"{where}: a nested tensor cannot be followed; pad its rows instead")
            self._refuse(tensor)
            value = self._values[id(tensor)] = len(self._alive)
            self._alive.append(tensor)
        return value

    def let_go(self) -> list[Tensor]:
        """Hold no tensor any longer, and no error that does; return the tensors that operations made."""
        made = [self._alive[value] for value in self._made]
        self._alive, self._failed = [], None
        self._stack.clear()
        return made

    def give(self, size_origins: SizeOrigins) -> None:
        """Take note of the axes that the sizes of the calls from here on were read off."""
        self._given = size_origins

    def compute(self, computed: bool) -> None:
        """Take note of whether the sizes of the calls from here on are computed by PyTorch."""
        self._computed = computed

    def give_numbers(self, numbers: tuple[int, ...]) -> None:
        """Take note of the integers that Python gives to the calls from here on."""
        self._numbers = numbers

    def give_lists(self, lists: list[list[int]]) -> None:
        """Take note of the lists of positions with which Python indexes from here on."""
        self._lists, self._known = lists, len(self._alive)

    def note_equal(self, first: Origin, second: Origin) -> None:
        """Take note of an attribute that the running module has found equal to a length."""
        for read, length in ((first, second), (second, first)):
            if isinstance(read, AttributeRead) and isinstance(length, LengthRead):
                self.equal.append((self.module, read, length))

    def ref(self, tensor: Tensor) -> Ref:
        """Refer to a tensor as it is now."""
        return Ref(self.value_of(tensor), tuple(tensor.shape))

    @contextmanager
    def watching(self, network: Network) -> Iterator[None]:
        """Keep track of the running module while a forward of the network runs, which must be nobody else's.

        Each module's ``forward`` is stood in for: hooks would send every call down the slow road of
        ``nn.Module``, which takes as long as recording an operation.
        """
        own: list[tuple[dict[str, Any], Any]] = []
        for path, module in network.modules.items():
            attributes = vars(module)
            own.append((attributes, attributes.get("forward")))
            attributes["forward"] = self._watched(path, module.forward)
        try:
            yield
        finally:
            for attributes, forward in own:
                if forward is None:
                    del attributes["forward"]
                else:
                    attributes["forward"] = forward

    def _watched(self, path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Stand in for the forward of one module."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            self._stack.append((path, args, kwargs))
            try:
                return forward(*args, **kwargs)
            except BaseException as error:
                self._note_failure(error)
                raise
            finally:
                self._stack.pop()

        return watched

    def _note_failure(self, error: BaseException) -> None:
        """Remember the innermost module that an error comes out of; a forward around it may yet catch it."""
        if self._failed is None or self._failed[0] is not error:
            self._failed = error, self._stack[-1]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Say that no compiler runs here: the wrapper that keeps it out costs more than the method."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operator = operator_of(func)
        if operator.silent:
            return func(*args, **kwargs)
        if operator.composite:
            output = (
                self._as_another(operator, args, kwargs) if operator.stands_for and self._shortcuts else None
            )
            return self._decomposed(operator, func, args, kwargs) if output is None else output
        # before the call: an operation in place may change the shape of what it is given
        given = bind(operator, args, kwargs)
        arguments = self._refs_for(given)
        if operator.lifts and given["self"].ndim == 0:
            arguments["value"] = _number(given["self"])
        if operator.decides == "mask" and self._lists:
            arguments["positions"] = self._positions(given["indices"])
        output = operator.shortcut(given) if operator.shortcut and self._shortcuts else None
        if output is None and operator.decides and self._decider is not None:
            output = self._decider.run(operator.decides, func, args, kwargs)
        elif output is None:
            output = func(*args, **kwargs)
        self._note(operator, operator.name, arguments, output)
        return output

    def _as_another(self, operator: Operator, args: Any, kwargs: Any) -> Any:
        """Record a composite operation as the one it stands for, and return its output; None where that has
        no shortcut."""
        assert operator.stands_for is not None
        name, more = operator.stands_for
        given = {**bind(operator, args, kwargs), **more}
        shortcut = shortcut_of(name)
        output = shortcut(given) if shortcut else None
        if output is not None:
            self._note(operator, name, self._refs_for(given), output)
        return output

    def _note(self, operator: Operator, name: str, arguments: dict[str, Any], output: Any) -> None:
        """Write down one call."""
        known = len(self._alive)
        outputs = (
            (self.ref(output),)
            if isinstance(output, Tensor)
            else tuple(self.ref(t) for t in tensors_in(output))
        )
        self._made += range(known, len(self._alive))
        sized = operator.sized and len(self._given) == len(outputs[0].shape)
        self.calls.append(
            Call(
                op=name,
                module=self.module,
                arguments=arguments,
                outputs=outputs,
                pointwise=operator.pointwise,
                size_origins=self._given if sized else (),
                einsum=self._einsum,
                sizes_computed=self._computed,
                numbers=self._numbers,
            )
        )
        if self._operations_left is not None and not entry_of(name).copies:
            self._operations_left -= 1
            if self._operations_left == 0:
                raise RecordingLimit

    def _positions(self, indices: list[Any]) -> list[list[int] | None]:
        """Say which of the indices are made of the lists that Python indexes with, and what these hold."""
        made = [isinstance(t, Tensor) and self.value_of(t) >= self._known for t in indices]
        lists = iter(self._lists if sum(made) == len(self._lists) else ())
        return [next(lists, None) if new else None for new in made]

    def _refs_for(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Replace every tensor among arguments with its Ref."""
        return {
            name: value if type(value) in _PLAIN else self._replace(value) for name, value in given.items()
        }

    def _replace(self, argument: Any) -> Any:
        """Replace the tensors of one argument, however nested."""
        if isinstance(argument, Tensor):
            return self.ref(argument)
        if isinstance(argument, (list, tuple)):
            return [self._replace(item) for item in argument]
        return argument

    def _decomposed(self, operator: Operator, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a composite operation as the operations that it is made of."""
        outermost = operator.shape_dependent and not self._einsum
        if outermost:
            self._einsums += 1
            self._einsum = self._einsums
        try:
            with self:
                return func.decompose(*args, **kwargs)
        finally:
            if outermost:
                self._einsum = 0
