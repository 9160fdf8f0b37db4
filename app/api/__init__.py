"""HTTP in, HTTP out: authentication, problems, schemas, one router per feature."""
