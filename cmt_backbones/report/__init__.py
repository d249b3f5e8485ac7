"""The page of a run: what was trained, how it went, what it finds and where it fails, in one HTML file."""
