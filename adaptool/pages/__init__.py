"""Pages that stand alone: results as HTML and SVG text, without scripts and without links."""
