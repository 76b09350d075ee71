"""How a command takes its options: single ones as parameters, related ones as a frozen dataclass."""

import functools
import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer


def command(*examples: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that prepares a function for `mount`.

    A parameter whose type is a dataclass becomes one option for each of its fields, declared there with `Annotated`.
    A class attribute `panel` of the dataclass titles its section of the help.

    examples: command lines that end the help.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(function, include_extras=True)
        groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
        parameters: list[inspect.Parameter] = []
        for name, parameter in inspect.signature(function).parameters.items():
            keyword = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
            parameters += _group_parameters(groups[name]) if name in groups else [keyword]

        @functools.wraps(function)
        def run(**values: Any) -> None:
            for name, kind in groups.items():
                values[name] = kind(**{field.name: values.pop(field.name) for field in fields(kind)})
            function(**values)

        del run.__wrapped__  # its signature is not the command's
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.examples = examples  # type: ignore[attr-defined]
        return run

    return decorate


def mount(app: typer.Typer, function: Callable[..., None]) -> None:
    """Add a function that `command` prepared to an application."""
    examples = function.examples  # type: ignore[attr-defined]
    title = "Examples:" if len(examples) > 1 else "Example:"
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    app.command(
        help="\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs),
        epilog="\b\n" + "\n".join([title, *(f"  {line}" for line in examples)]),
    )(function)


def _group_parameters(group: type) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=_in_panel(hints[field.name], getattr(group, "panel", None)),
        )
        for field in fields(group)
    ]


def _in_panel(annotation: Any, panel: str | None) -> Any:
    """Return an annotation whose option is listed in a section of the help."""
    if panel is None or get_origin(annotation) is not Annotated:
        return annotation
    kind, option = get_args(annotation)
    option = copy(option)
    option.rich_help_panel = option.rich_help_panel or panel
    return Annotated[kind, option]
