"""The inside of `tfc.grammar.lower`: a syntax tree turned into the IR, one concept of the language a file."""
