-- What the server stores. Only the owner reads and writes it; everyone else sees the views of schema `results`.
--
-- Metric rows and checkpoints belong to a result, of which there is one per content key. Jobs point to results, so
-- that cached work shows under every run that asked for it and is stored once.

-- The list of applied migrations is in it already.
CREATE SCHEMA IF NOT EXISTS taskvec;

-- One row. A server that takes the lead raises the epoch; every transaction of a leader checks that it is still its own.
CREATE TABLE taskvec.leader (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    epoch bigint NOT NULL
);
INSERT INTO taskvec.leader (epoch) VALUES (0);

-- Identifiers of sweeps, runs and jobs are given by the leader without gaps, so that the same sweeps have the same
-- identifiers on every installation.
CREATE TABLE taskvec.sweeps (
    sweep_id bigint PRIMARY KEY,
    name text NOT NULL,
    state text NOT NULL CHECK (state IN ('active', 'paused', 'done', 'failed', 'cancelled')),
    priority integer NOT NULL,
    submitted_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    spec jsonb NOT NULL,
    yaml text NOT NULL
);
CREATE INDEX sweeps_open ON taskvec.sweeps (sweep_id) WHERE state IN ('active', 'paused');

CREATE TABLE taskvec.runs (
    run_id bigint PRIMARY KEY,
    sweep_id bigint NOT NULL REFERENCES taskvec.sweeps,
    kind text NOT NULL,
    seed bigint NOT NULL,
    params jsonb NOT NULL,
    spec jsonb NOT NULL
);
CREATE INDEX runs_sweep ON taskvec.runs (sweep_id, run_id);

CREATE TABLE taskvec.workers (
    worker_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- Chosen at random by the process: only the process that had an identifier gets it again.
    nonce bigint NOT NULL UNIQUE,
    name text NOT NULL,
    host text NOT NULL,
    devices text[] NOT NULL,
    slots integer NOT NULL,
    threads_per_slot integer NOT NULL,
    pid bigint NOT NULL,
    version text NOT NULL,
    state text NOT NULL CHECK (state IN ('connected', 'lost', 'draining', 'left')),
    registered_at timestamptz NOT NULL DEFAULT now(),
    left_at timestamptz
);
CREATE INDEX workers_present ON taskvec.workers (worker_id) WHERE state <> 'left';

CREATE TABLE taskvec.results (
    result_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key bytea NOT NULL UNIQUE CHECK (length(key) = 32),
    kind text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Narrow, with room on each page: a job's row is rewritten at every change of state.
CREATE TABLE taskvec.jobs (
    job_id bigint PRIMARY KEY,
    sweep_id bigint NOT NULL REFERENCES taskvec.sweeps,
    run_id bigint NOT NULL REFERENCES taskvec.runs,
    kind text NOT NULL,
    step bigint,
    key bytea NOT NULL CHECK (length(key) = 32),
    flops double precision NOT NULL,
    -- An earlier job of the same run has the same key: the views show their common result once.
    repeats boolean NOT NULL,
    -- A stored result satisfied it when it was submitted.
    cached boolean NOT NULL,
    state text NOT NULL
        CHECK (state IN ('waiting', 'ready', 'running', 'done', 'failed', 'skipped', 'cancelled')),
    attempts integer NOT NULL DEFAULT 0,
    failures integer NOT NULL DEFAULT 0,
    worker_id bigint REFERENCES taskvec.workers,
    result_id bigint REFERENCES taskvec.results,
    started_at timestamptz,
    finished_at timestamptz,
    error text,
    CHECK ((state = 'done') = (result_id IS NOT NULL))
) WITH (fillfactor = 70);
CREATE INDEX jobs_sweep ON taskvec.jobs (sweep_id, job_id);
CREATE INDEX jobs_run ON taskvec.jobs (run_id, job_id);
CREATE INDEX jobs_result ON taskvec.jobs (result_id) WHERE result_id IS NOT NULL;
-- From a run (and step) to its results, and from a step to those of all runs.
CREATE INDEX jobs_shown_by_run ON taskvec.jobs (run_id, kind, step, result_id)
    WHERE result_id IS NOT NULL AND NOT repeats;
CREATE INDEX jobs_shown_by_step ON taskvec.jobs (kind, step, run_id, result_id)
    WHERE result_id IS NOT NULL AND NOT repeats;

-- What a job computes (taskvec_model::job::JobWork). Apart from the job's row because it is large and never changes.
CREATE TABLE taskvec.job_work (
    job_id bigint PRIMARY KEY REFERENCES taskvec.jobs,
    work jsonb NOT NULL
);

-- job_id reads the checkpoint (step, purpose) of needs_job_id.
CREATE TABLE taskvec.job_needs (
    job_id bigint NOT NULL REFERENCES taskvec.jobs,
    needs_job_id bigint NOT NULL REFERENCES taskvec.jobs,
    step bigint NOT NULL,
    purpose text NOT NULL,
    PRIMARY KEY (job_id, needs_job_id, step, purpose)
);
CREATE INDEX job_needs_needed ON taskvec.job_needs (needs_job_id, step, purpose);

CREATE TABLE taskvec.attempts (
    job_id bigint NOT NULL REFERENCES taskvec.jobs,
    number integer NOT NULL,
    worker_id bigint NOT NULL REFERENCES taskvec.workers,
    state text NOT NULL
        CHECK (state IN ('running', 'succeeded', 'failed', 'expired', 'released', 'cancelled')),
    lease_expires_at timestamptz NOT NULL,
    started_at timestamptz NOT NULL,
    finished_at timestamptz,
    reason text,
    log text,
    PRIMARY KEY (job_id, number)
) WITH (fillfactor = 70);
CREATE INDEX attempts_running ON taskvec.attempts (job_id) WHERE state = 'running';

-- A stored run of bytes, cut into chunks. `last_wanted_at`: when an upload last declared it. `recorded_at`: when a
-- checkpoint or a handover last came to refer to it. What is recorded after it was last wanted, and referred to no
-- more, can go at once; anything else only after a grace period, since an upload may be under way.
CREATE TABLE taskvec.blobs (
    digest bytea PRIMARY KEY CHECK (length(digest) = 32),
    bytes bigint NOT NULL,
    last_wanted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    recorded_at timestamptz
);

-- No foreign key to chunks: their bytes may live elsewhere than in this database.
CREATE TABLE taskvec.blob_chunks (
    digest bytea NOT NULL REFERENCES taskvec.blobs ON DELETE CASCADE,
    ordinal integer NOT NULL,
    hash bytea NOT NULL CHECK (length(hash) = 32),
    PRIMARY KEY (digest, ordinal)
);
CREATE INDEX blob_chunks_hash ON taskvec.blob_chunks (hash);

CREATE TABLE taskvec.chunks (
    hash bytea PRIMARY KEY CHECK (length(hash) = 32),
    bytes integer NOT NULL,
    last_wanted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Its bytes were found not to match its hash; the next upload replaces them.
    damaged boolean NOT NULL DEFAULT false,
    data bytea NOT NULL
);
-- Weights do not compress: do not try.
ALTER TABLE taskvec.chunks ALTER COLUMN data SET STORAGE EXTERNAL;
CREATE INDEX chunks_idle ON taskvec.chunks (last_wanted_at);

CREATE TABLE taskvec.checkpoints (
    checkpoint_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    result_id bigint NOT NULL REFERENCES taskvec.results,
    step bigint NOT NULL,
    purpose text NOT NULL CHECK (purpose IN ('weights', 'resume')),
    digest bytea NOT NULL REFERENCES taskvec.blobs,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (result_id, step, purpose)
);
CREATE INDEX checkpoints_digest ON taskvec.checkpoints (digest);

-- Where an attempt that was asked to stop left off (taskvec_model::job::Handover), until the job is done.
CREATE TABLE taskvec.handovers (
    job_id bigint PRIMARY KEY REFERENCES taskvec.jobs,
    handover jsonb NOT NULL
);
CREATE TABLE taskvec.handover_blobs (
    job_id bigint NOT NULL REFERENCES taskvec.handovers ON DELETE CASCADE,
    digest bytea NOT NULL REFERENCES taskvec.blobs,
    PRIMARY KEY (job_id, digest)
);
CREATE INDEX handover_blobs_digest ON taskvec.handover_blobs (digest);

-- Metric rows, by result. They are inserted only in the transaction that inserts their result, and never changed; a
-- foreign key to results would be checked row by row, which takes as long as the insertion itself.
CREATE TABLE taskvec.train_loss (
    result_id bigint NOT NULL,
    step bigint NOT NULL,
    loss double precision NOT NULL,
    learning_rate double precision NOT NULL,
    sequences_per_second double precision NOT NULL,
    PRIMARY KEY (result_id, step)
);

CREATE TABLE taskvec.icl (
    result_id bigint NOT NULL,
    value double precision NOT NULL,
    stderr double precision NOT NULL,
    shots integer NOT NULL,
    position integer,
    n integer NOT NULL,
    latent_task text COLLATE "C" NOT NULL,
    metric text COLLATE "C" NOT NULL,
    UNIQUE NULLS NOT DISTINCT (result_id, latent_task, shots, position, metric)
);
-- One position (or the mean, which is null) over many results: how a whole sweep develops.
CREATE INDEX icl_by_position ON taskvec.icl (position, result_id) INCLUDE (value);

CREATE TABLE taskvec.baselines (
    result_id bigint NOT NULL,
    mse double precision NOT NULL,
    position integer,
    latent_task text COLLATE "C" NOT NULL,
    estimator text COLLATE "C" NOT NULL,
    UNIQUE NULLS NOT DISTINCT (result_id, latent_task, estimator, position)
);

CREATE TABLE taskvec.td (
    result_id bigint NOT NULL,
    value double precision NOT NULL,
    stderr double precision NOT NULL,
    layer integer NOT NULL,
    shots integer NOT NULL,
    k integer NOT NULL,
    n integer NOT NULL,
    site text COLLATE "C" NOT NULL,
    latent_task text COLLATE "C" NOT NULL,
    PRIMARY KEY (result_id, layer, site, latent_task, shots, k)
);
-- One layer over many results: how a whole sweep develops.
CREATE INDEX td_by_layer ON taskvec.td (layer, site, result_id) INCLUDE (value);

CREATE TABLE taskvec.td_bound (
    result_id bigint NOT NULL,
    value double precision NOT NULL,
    shots integer NOT NULL,
    latent_task text COLLATE "C" NOT NULL,
    PRIMARY KEY (result_id, latent_task, shots)
);
