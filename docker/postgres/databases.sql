-- Run once, by the image's entrypoint, in a new database: a role and its databases for each service.
-- psql reads the passwords from the secret files by itself, so that no command line and no log holds them.
\set mlflow `cat /run/secrets/mlflow_database_password`
\set prefect `cat /run/secrets/prefect_database_password`
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow';
CREATE ROLE prefect LOGIN PASSWORD :'prefect';
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE mlflow_users OWNER mlflow;
CREATE DATABASE prefect OWNER prefect;
