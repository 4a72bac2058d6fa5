"""`tfc lsp`: a pipe from an editor -> the language server at its other end; or what to install."""

from importlib.util import find_spec

from tfc.diagnostics import Diagnostic, TfcError

__all__ = ["lsp"]


def lsp(port: int | None) -> int:
    """Serves until the client leaves. Raises TfcError where the extra is missing."""
    if find_spec("pygls") is None or find_spec("lsprotocol") is None:
        message = "the language server needs pygls, which is not installed"
        raise TfcError(Diagnostic("E722", message, help="pip install 'tfc[lsp]'"))
    from tfc.lsp.server import serve

    serve(port)
    return 0
