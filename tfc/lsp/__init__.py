"""The language server: an editor's questions about a `.tfm` text -> answers in the Language Server Protocol.

`server.py` wires it to pygls; each other file answers one kind of question from an `Analysis`.
"""
