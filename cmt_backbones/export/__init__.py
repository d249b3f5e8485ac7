"""What leaves Python: models as files that others take."""
