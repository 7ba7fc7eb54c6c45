"""Units of work: read artefacts, call models, write artefacts, log. Knows files, DVC and MLflow."""
