"""Command-line arguments from typed dataclasses (tyro), with one-line errors."""

import contextlib
import dataclasses
import difflib
import functools
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructTypeInfo,
)

from instahide_jax.errors import InputError
from instahide_jax.folders import user_path

T = TypeVar("T")

# On a stream that is no terminal tyro prints a box as plain text: title, rule, then sections that
# are parted by rules.
_RULE = re.compile(r"^ +-{3,} *$")
_OPTION = re.compile(r"^ +(?:-\w, )?(--\w[\w.-]*)(?:, (--\w[\w.-]*))?", re.MULTILINE)


def parse_args(
    target: type[T] | Callable[..., T],
    argv: Sequence[str] | None = None,
    *,
    default: T | None = None,
    prog: str | None = None,
) -> T:
    """Build `target` from the command line.

    Args:
        target: a dataclass (nested ones give options such as `--scheme.k`), or a function, whose
            parameters are the options and whose result is returned.
        argv: the arguments without the program's name; `sys.argv[1:]` if None.
        default: an instance of `target` whose fields are the options' defaults. A field that holds
            a dataclass offers the options of that very instance, whatever base class, protocol or
            union annotates the field.
        prog: the program's name in help and errors; `sys.argv[0]` if None.

    Returns:
        a new instance; `default` itself is never changed.

    Raises:
        InputError: for bad usage, in one line: an unknown option (with the nearest known one), a
            missing or malformed value; and whatever InputError the construction itself raises
            (validation in a `__post_init__`, for example), word for word.
        SystemExit: with code 0, after `--help` has been printed.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    prog = prog or os.path.basename(sys.argv[0])
    # A function is called only after the parse: what it prints must not be held back as an error.
    is_function = not inspect.isclass(target)
    parser = _deferred(target) if is_function else target
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            parsed = _cli(parser, argv, default, prog)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise (_input_error(stop) or _usage_error(parser, argv, default, prog)) from None
    return parsed() if is_function else parsed


def _deferred(function: Callable[..., T]) -> Callable[..., Callable[[], T]]:
    """The same parameters, but the call is returned instead of made."""

    @functools.wraps(function)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], T]:
        return functools.partial(function, *args, **kwargs)

    return bind


def _cli(parser: Any, argv: Sequence[str], default: Any, prog: str) -> Any:
    registry = ConstructorRegistry()
    registry.struct_rule(_narrow_to_default)
    registry.primitive_rule(_path)
    registry.primitive_rule(_optional)
    return tyro.cli(
        parser,
        args=argv,
        prog=prog,
        registry=registry,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.PositionalMetavarFromFieldName),
        **({} if default is None else {"default": default}),
    )


def _path(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
    """Paths as users type them, with ~ for a home folder."""
    if info.type is not Path:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: _local_path(words[0]),
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda path: [str(path)],
    )


def _local_path(word: str) -> Path:
    """`user_path`, whose complaint tyro puts behind the option's name, which is not known here.

    Raises:
        ValueError: for what names no place on this machine.
    """
    try:
        return user_path(word, "it")
    except InputError as error:
        said = str(error)
    raise ValueError(said)  # not in the handler: an `InputError` in its context would be taken


def _checked_text(words: list[str]) -> str:
    _local_path(words[0])
    return words[0]


# A path that is kept as it is typed: it may be something else, such as a data set's name.
PathText = Annotated[
    str,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=_checked_text,
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda text: [text],
    ),
]


def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """What is of one kind or None, read as that kind: errors then speak of that alone."""
    kinds = get_args(info.type) if info.type_origin in (Union, UnionType) else ()
    if len(kinds) != 2 or NoneType not in kinds:
        return None
    kind = next(kind for kind in kinds if kind is not NoneType)
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kind, info.markers))
    if not isinstance(spec, PrimitiveConstructorSpec) or spec.nargs not in (1, "*"):
        return None
    return dataclasses.replace(
        spec,
        metavar=f"{{None}}|{spec.metavar}",
        instance_from_str=lambda ws: None if ws == ["None"] else spec.instance_from_str(ws),
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda v: ["None"] if v is None else spec.str_from_instance(v),
        choices=None if spec.choices is None else ("None", *spec.choices),
    )


def _narrow_to_default(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Describe a field by the dataclass it holds, where its annotation says less.

    tyro narrows base classes by itself, but calls a field "fixed" that is annotated with a protocol
    or with a union whose members are mere bases of the default.
    """
    held = type(info.default)
    if not dataclasses.is_dataclass(held) or info.type is held:
        return None
    spec = ConstructorRegistry.get_struct_spec(
        StructTypeInfo.make(held, info.default, info.in_union_context)
    )
    return spec if isinstance(spec, StructConstructorSpec) else None


def _input_error(stop: SystemExit) -> InputError | None:
    """The InputError that made tyro exit, if it was one (tyro exits while handling it)."""
    error: BaseException | None = stop
    while error is not None:
        if isinstance(error, InputError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _usage_error(parser: Any, argv: Sequence[str], default: Any, prog: str) -> InputError:
    """Parse once more, on a very wide terminal, and condense the box to one line."""
    with _captured() as (_, stderr), contextlib.suppress(SystemExit):
        _cli(parser, argv, default, prog)
    box = stderr.getvalue()
    unknown = _unknown_tokens(box)
    if unknown:
        options = _options(parser, default, prog)
        return InputError(_describe_unknown(unknown, argv, options, prog))
    return InputError(f"{_condense(box)}; see {prog} --help")


def _describe_unknown(
    unknown: Sequence[str], argv: Sequence[str], options: Sequence[str], prog: str
) -> str:
    """Name the first unknown option (or else stray value) and the known option nearest to it."""
    token = next((token for token in unknown if token.startswith("-")), None)
    if token is None:
        return f"unexpected argument {unknown[0]!r}; see {prog} --help"
    # tyro may have swapped hyphens and underscores: name the option as the user wrote it.
    same = [a for a in argv if a.replace("_", "-") == token.replace("_", "-")]
    name = (same[0] if same else token).partition("=")[0]
    nearest = difflib.get_close_matches(name.replace("_", "-"), options, n=1)
    remedy = f"did you mean {nearest[0]}?" if nearest else f"see {prog} --help"
    return f"unknown option {name}; {remedy}"


def _options(parser: Any, default: Any, prog: str) -> list[str]:
    """All long options, as the help text lists them."""
    # On a wide terminal the groups of options would stand side by side.
    with _captured(columns=100) as (stdout, _), contextlib.suppress(SystemExit):
        _cli(parser, ["--help"], default, prog)
    return [name for pair in _OPTION.findall(stdout.getvalue()) for name in pair if name]


@contextlib.contextmanager
def _captured(columns: int = 10_000) -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """Hold back stdout and stderr, on a terminal by default so wide that no line is broken."""
    stdout, stderr = io.StringIO(), io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(columns)
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            yield stdout, stderr
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _sections(box: str) -> tuple[str, list[list[str]]]:
    """Title and sections of tyro's box, each a list of lines that keep their own indentation."""
    title, _, body = box.partition("\n")
    sections: list[list[str]] = []
    for line in body.splitlines():
        if _RULE.match(line):
            sections.append([])
        elif line.strip() and sections:
            sections[-1].append(line[2:].rstrip())
    return title.strip(), sections


def _unknown_tokens(box: str) -> list[str]:
    """What tyro did not recognise, whether that is its whole complaint or a part of it."""
    for lines in _sections(box)[1]:
        head, _, rest = lines[0].partition(":") if lines else ("", "", "")
        if head == "Unrecognized options":
            return [token.strip() for token in [*rest.split(", "), *lines[1:]] if token.strip()]
    return []


def _condense(box: str) -> str:
    """The first section of a box (what is wrong) in one line."""
    title, sections = _sections(box)
    lines = sections[0]
    if title == "Required options":
        # Each missing option stands at four spaces, its help text further in.
        names = [line.strip() for line in lines if re.match(r"^ {4}\S", line)]
        return f"missing {', '.join(names)}"
    text = " ".join(line.strip() for line in lines)
    return text.removeprefix("Error parsing ").rstrip(".")
