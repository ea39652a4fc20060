"""Signatures of the package checked in every call of the test run: types by beartype, shapes by jaxtyping.

What is checked: functions of modules and classes, and inner functions that have shapes in their signatures,
such as an estimator's; other inner functions are made anew with each trace, which would cost more than it
tells. Subprocesses check nothing.
"""

import ast
import functools
import sys
from contextlib import nullcontext
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder, SourceFileLoader

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeCallHintParamViolation, BeartypeDecorHintPep673Exception
from jaxtyping import jaxtyped

_CONFIG = BeartypeConf(is_pep484_tower=True)  # an int where a float is asked for
_NO_SHAPES = nullcontext()


def checked(function, shapes=_NO_SHAPES):
    """The function; a call against its signature raises, unless the function itself refuses it."""
    try:
        strict = beartype(function, conf=_CONFIG)
    except BeartypeDecorHintPep673Exception:  # `Self`, of a method alone
        return function

    @functools.wraps(function)
    def call(*args, **kwargs):
        try:
            with shapes:
                return strict(*args, **kwargs)
        except BeartypeCallHintParamViolation as violation:
            if not hasattr(violation, "of"):
                violation.of = function
                _refuse(function, *args, **kwargs)
            raise

    # Whoever looks at a traceback for code of one's own finds none between the package's.
    call.__code__ = call.__code__.replace(co_filename=function.__code__.co_filename)
    return call


def checked_with_shapes(function):
    """The same where the signature has names of sizes: each stands for one number throughout a call."""
    return checked(function, jaxtyped("context"))


def _refuse(function, *args, **kwargs):
    """Raises what the function itself says of these arguments, if that is meant for whoever calls it."""
    try:
        function(*args, **kwargs)
    except AssertionError:
        raise
    except Exception as error:
        if type(error).__module__ == "decoupled.errors":
            raise


class _Decorated(ast.NodeTransformer):
    """`checked` as the innermost decorator, so that `jit` and the like are around it."""

    def __init__(self):
        self._inside = False

    def visit_FunctionDef(self, node):
        shapes = _has_shapes(node)
        if _annotated(node) and (not self._inside or shapes):
            name = ast.Name("__checked_with_shapes__" if shapes else "__checked__", ast.Load())
            node.decorator_list.append(ast.copy_location(name, node))
        outside, self._inside = self._inside, True
        self.generic_visit(node)
        self._inside = outside
        return node


def _annotations(node):
    arguments = node.args
    each = [
        *arguments.posonlyargs,
        *arguments.args,
        *arguments.kwonlyargs,
        arguments.vararg,
        arguments.kwarg,
    ]
    found = [argument.annotation for argument in each if argument] + [node.returns]
    return [annotation for annotation in found if annotation]


def _annotated(node):
    return bool(_annotations(node))


def _has_shapes(node):
    parts = (part for annotation in _annotations(node) for part in ast.walk(annotation))
    return any(isinstance(part, ast.Constant) and isinstance(part.value, str) for part in parts)


class _Loader(SourceFileLoader):
    def get_code(self, fullname):  # past the cache, which has the code as it is
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)

    def source_to_code(self, data, path, *, _optimize=-1):
        tree = _Decorated().visit(ast.parse(data, path))
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True, optimize=_optimize)

    def exec_module(self, module):
        module.__checked__ = checked
        module.__checked_with_shapes__ = checked_with_shapes
        super().exec_module(module)


class _Finder(MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] != "decoupled":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def check_all():
    """Every module of the package that is imported from now on."""
    sys.meta_path.insert(0, _Finder())
