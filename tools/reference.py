"""Signatures for the page about the API: what Griffe, which reads the source for it, does not put together itself."""

from __future__ import annotations

from typing import Any

from griffe import Alias, Attribute, Class, Expr, Extension, Function, GriffeLoader, Module, Object, ParameterKind


class Signatures(Extension):
    """Has a class without `__init__` take what its `__new__` takes, and shows the values of constants as defaults.

    An error of ours that a docstring names is linked, also where the module that has the docstring does not import it.
    """

    def on_package(self, *, pkg: Module, loader: GriffeLoader, **_others: Any) -> None:
        """Go through all modules, once they were read."""
        _improve(pkg, loader)
        if isinstance(errors := pkg.members.get("exceptions"), Module):
            _make_known(errors, pkg)


def _make_known(errors: Module, module: Module) -> None:
    for name, error in errors.members.items():
        if isinstance(error, Class) and name not in module.members:
            module.set_member(name, Alias(name, error))
    for member in list(module.members.values()):
        if isinstance(member, Module):
            _make_known(errors, member)


def _improve(owner: Object, loader: GriffeLoader) -> None:
    for member in list(owner.members.values()):
        if isinstance(member, Function):
            for parameter in member.parameters:
                if parameter.kind in (ParameterKind.var_positional, ParameterKind.var_keyword):
                    parameter.default = None  # Griffe says () and {}
                elif isinstance(parameter.default, Expr):
                    parameter.default = _value(parameter.default, loader)
        elif isinstance(member, Class):
            new = member.members.get("__new__")
            if isinstance(new, Function) and "__init__" not in member.members:
                made = Function("__init__", parameters=new.parameters, lineno=new.lineno, endlineno=new.endlineno)
                member.set_member("__init__", made)
        if isinstance(member, (Module, Class)):
            _improve(member, loader)


def _value(default: Expr, loader: GriffeLoader) -> Expr | str:
    """What a default is, where it is the name of a constant of text or of a number."""
    try:
        constant = loader.modules_collection[default.canonical_path]
        value = constant.final_target.value if constant.is_alias else constant.value
    except (KeyError, AttributeError):
        return default
    return value if isinstance(value, str) and isinstance(constant, Attribute) else default
