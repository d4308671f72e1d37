-- Which submission made a sweep, so that one that is sent again does not make another.
ALTER TABLE taskvec.sweeps ADD COLUMN request bytea UNIQUE CHECK (length(request) = 16);
