"""Constructors whose keyword arguments are written once, as `name: Annotated[type, default, meaning]` in a `TypedDict`.

The type has its limits with it, such as `Count`, see `agents.utils.limits`.  The constructor of a family of algorithms ends in
`**arguments: Unpack[...]` of its `TypedDict`, so that editors and mypy know all names and types.  A subclass states only the defaults
that it changes and the arguments that it adds:

    class Mine(TextPolicyGradient):
        _defaults: ClassVar[PolicyGradientArguments] = {"n_epochs": 2}

        def __init__(self, policy, env, tilt: float = 1.0, **arguments: Unpack[PolicyGradientArguments]) -> None:
            super().__init__(policy, env, **arguments)
            self.tilt = tilt
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable, Mapping
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar, cast, get_type_hints

from textrl_env.utils.suggestions import did_you_mean

from ...utils.limits import check

if TYPE_CHECKING:
    from typing_extensions import Self

_ANNOTATED: Any = Annotated  # made of values here, which type checkers do not expect
Arguments = TypeVar("Arguments", bound=Mapping[str, object])


class KeywordArguments:
    """Mixin: `inspect.signature` and `help` of each subclass list every argument, and a wrong name is a TypeError."""

    _arguments: ClassVar[Any] = None  # TypedDict of the keyword arguments
    _defaults: ClassVar[Mapping[str, Any]] = {}  # what differs from the defaults in `_arguments`, or from the parent's
    _meanings: ClassVar[Mapping[str, str]] = {}  # of all arguments by name, those named in the constructor too
    _accepted: ClassVar[dict[str, Parameter]] = {}  # the fields of `_arguments` with the defaults of the class
    _hints: ClassVar[dict[str, Any]] = {}  # their types, limits included
    _instead: ClassVar[Mapping[str, str]] = {}  # what arguments of other libraries are called here
    __signature__: ClassVar[Signature]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "_arguments" in vars(cls):
            fields = get_type_hints(cls._arguments, include_extras=True)
            cls._accepted, cls._hints = {}, {}
            for name, field in fields.items():
                *limits, default, meaning = field.__metadata__
                hint = (field.__origin__, *limits)
                cls._hints[name] = _ANNOTATED[hint] if limits else field.__origin__
                cls._accepted[name] = Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=field.__origin__)
                cls._meanings = {**cls._meanings, name: meaning}
        changed = vars(cls).get("_defaults", {})
        cls._accepted = {**cls._accepted, **{name: cls._accepted[name].replace(default=value) for name, value in changed.items()}}
        if cls._accepted:
            cls.__signature__ = cls._whole_signature()
            cls.__doc__ = cls.__doc__ and cls._whole_doc(cls.__doc__)

    @classmethod
    def _whole_signature(cls) -> Signature:
        _, *named = inspect.signature(cls.__init__).parameters.values()
        explicit = {one.name: one for one in named if one.kind is not Parameter.VAR_KEYWORD}
        if len(explicit) == len(named):  # it passes nothing on
            return Signature(named)
        inherited = getattr(super(cls, cls), "__signature__", Signature()).parameters
        others = [one for name, one in {**inherited, **cls._accepted}.items() if name not in explicit]
        return Signature([*explicit.values(), *(one.replace(kind=Parameter.KEYWORD_ONLY) for one in others)])

    @classmethod
    def _whole_doc(cls, own: str) -> str:
        """Return a docstring with an entry for every argument that it does not describe itself."""
        doc = inspect.cleandoc(own)
        if "\nArgs:\n" not in doc:
            head, raises, tail = doc.partition("\n\nRaises:\n")
            doc = f"{head}\n\nArgs:\n{raises}{tail}"
        entries = ""
        for name, one in cls.__signature__.parameters.items():
            if name in cls._meanings and not re.search(rf"^    {name}: ", doc, re.MULTILINE):
                default = "" if one.default is Parameter.empty else f"  Default: {one.default!r}."
                entry = f"{name}: {cls._meanings[name]}{default}"
                entries += textwrap.fill(entry, 120, initial_indent="    ", subsequent_indent="        ") + "\n"
        return doc.replace("\nArgs:\n", f"\nArgs:\n{entries}", 1).rstrip()

    def __new__(cls, *positional: Any, **named: Any) -> Self:
        """Refuse arguments that the class does not take, before `__init__` of any class looks at them.

        Raises:
            TypeError: One is missing, or the class has none of such a name.
        """
        signature = cls.__signature__ if positional or named else Signature()  # copying and unpickling pass none
        cls._check_names(named, signature.parameters)
        bound = signature.bind_partial(*positional, **named).arguments
        for name, one in signature.parameters.items():
            if one.default is Parameter.empty and name not in bound:
                raise TypeError(f"{cls.__name__} needs {name!r}: {cls._meanings.get(name, 'see its help')}")
        return super().__new__(cls)

    @classmethod
    def check(cls, **named: Any) -> None:
        """Check keyword arguments without making anything.

        Raises:
            TypeError: The class has no argument of such a name.
            ValueError: One is of another type, or out of its range.
        """
        cls._check_names(named, cls.__signature__.parameters)
        cls._check_values(named)

    @classmethod
    def _check_values(cls, named: Mapping[str, Any]) -> None:
        for name, value in named.items():
            if name in cls._hints:
                check(f"{name}={value!r}", value, cls._hints[name])

    @classmethod
    def _check_names(cls, named: Iterable[str], taken: Iterable[str]) -> None:
        for name in named:
            if name not in taken:
                known = [known for known in taken if not known.startswith("_")]
                close = f" (here it is {cls._instead[name]})" if name in cls._instead else did_you_mean(name, known)
                raise TypeError(f"{cls.__name__} takes no argument {name!r}{close}; it takes {', '.join(known)}")

    @classmethod
    def _complete(cls, given: Arguments) -> Arguments:
        """Return the keyword arguments that were given, and the defaults of all others.

        Raises:
            ValueError: One is of another type, or out of its range.
        """
        cls._check_names(given, cls._accepted)
        cls._check_values(given)
        return cast(Arguments, {name: given.get(name, one.default) for name, one in cls._accepted.items()})
