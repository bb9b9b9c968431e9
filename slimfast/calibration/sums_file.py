"""What error curves are made from, summed slice by slice, in a file: a run that was stopped goes on there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from slimfast.errors import SlimfastError
from slimfast.storage.documents import parse_object
from slimfast.storage.tensor_documents import open_tensor_document, write_tensor_document

KIND = "slimfast.sensitivities"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class SumsFile:
    """The file at ``path``, for what ``job`` says in some way of its own; that of another job is replaced."""

    path: Path
    job: str

    def read(self) -> tuple[int, dict[str, Tensor], list[Tensor]]:
        """Read how many slices are summed, the sums by weight, and how far random numbers were drawn."""
        if not self.path.exists():
            return 0, {}, []
        with open_tensor_document(self.path, "sums of a plan that was stopped") as file:
            fields = parse_object(file.document, str(self.path))
            fields.schema(KIND, SCHEMA)
            if fields.string("job") != self.job:
                return 0, {}, []
            file.check()
            tensors = {name: file.tensor(name).clone() for name in file.shapes}
        slices, drawn = fields.integer("slices"), fields.integer("drawn")
        fields.done()
        sums = {name[4:]: tensor for name, tensor in tensors.items() if name.startswith("sum:")}
        states = [tensors.get(f"drawn:{i}") for i in range(drawn)]
        found = [state for state in states if state is not None]
        if len(found) != drawn:
            raise SlimfastError(f"{self.path}: expected {drawn} states of random numbers, got {len(found)}")
        return slices, sums, found

    def write(self, slices: int, sums: Mapping[str, Tensor], drawn: Sequence[Tensor]) -> None:
        """Write what :meth:`read` gives, whole or not at all."""
        document = {"kind": KIND, "schema": SCHEMA, "job": self.job, "slices": slices, "drawn": len(drawn)}
        tensors = {f"sum:{weight}": total.cpu().contiguous() for weight, total in sums.items()}
        tensors |= {f"drawn:{i}": state for i, state in enumerate(drawn)}
        write_tensor_document(self.path, json.dumps(document), tensors)
