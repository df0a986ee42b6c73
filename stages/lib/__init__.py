"""Library of the stages. Imports go one way: stages -> effects -> pure -> records, params, files, errors."""
