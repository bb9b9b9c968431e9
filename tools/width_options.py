"""Width options on the site: an extension of griffe, which reads signatures without running the package.

Verbs of ``**options: Unpack[WidthOptions]`` list the options one by one when they run, by a decorator.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import griffe

OPTIONS = "slimfast.plans.request.WidthOptions"
_DEFAULTS = "slimfast.plans.request._DEFAULTS"


class WidthOptions(griffe.Extension):
    """Write the options into the signatures of a package that griffe has read."""

    def on_package(self, *, pkg: Any, **kwargs: Any) -> None:
        """Change every function of the package that takes the options."""
        if pkg.path != "slimfast":
            return
        options = pkg[OPTIONS.removeprefix("slimfast.")]
        defaults = {
            word.name: word.value for word in pkg[_DEFAULTS.removeprefix("slimfast.")].value.arguments
        }
        listed = [
            griffe.Parameter(
                name,
                annotation=field.annotation,
                kind=griffe.ParameterKind.keyword_only,
                default=defaults.get(name, "None"),
            )
            for name, field in options.attributes.items()
        ]
        for function in _functions(pkg):
            taken = [p for p in function.parameters if str(p.annotation) == "Unpack[WidthOptions]"]
            if taken:
                others = [p for p in function.parameters if p not in taken]
                at = sum(p.kind is not griffe.ParameterKind.keyword_only for p in others)
                function.parameters = griffe.Parameters(*others[:at], *listed, *others[at:])


def _functions(scope: Any) -> Iterator[Any]:
    for member in scope.members.values():
        if member.is_alias:
            continue
        if member.is_function:
            yield member
        elif member.is_module or member.is_class:
            yield from _functions(member)
