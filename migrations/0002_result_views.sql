-- The result views: what users query. Their columns are a promise; new ones are added at the end only.

CREATE SCHEMA results;
COMMENT ON SCHEMA results IS 'Results of taskvec: sweeps, their runs and jobs, checkpoints and everything measured on them.';

-- How a run stands, from the number of its jobs by state.
CREATE FUNCTION taskvec.run_state(
    jobs bigint, open bigint, running bigint, done bigint, failed bigint, cancelled bigint
)
RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN done = jobs THEN 'done'
        WHEN running > 0 OR (open > 0 AND open < jobs) THEN 'running'
        WHEN open > 0 THEN 'waiting'
        WHEN cancelled > 0 AND failed = 0 THEN 'cancelled'
        ELSE 'failed'
    END
$$;

CREATE VIEW results.sweeps AS
SELECT sweep_id, name, state, submitted_at, finished_at, spec, priority
FROM taskvec.sweeps;

COMMENT ON VIEW results.sweeps IS 'Submitted sweep files.';
COMMENT ON COLUMN results.sweeps.sweep_id IS 'Identifier, counted from 1.';
COMMENT ON COLUMN results.sweeps.name IS 'Name from the file; not unique.';
COMMENT ON COLUMN results.sweeps.state IS 'active, paused, done (every job is done), failed (all have ended, at least one failed) or cancelled.';
COMMENT ON COLUMN results.sweeps.submitted_at IS 'When it was submitted.';
COMMENT ON COLUMN results.sweeps.finished_at IS 'When it ended; null while it has not.';
COMMENT ON COLUMN results.sweeps.spec IS 'The sweep file as the user wrote it, as JSON.';
COMMENT ON COLUMN results.sweeps.priority IS 'Higher goes first; 0 unless said otherwise.';

CREATE VIEW results.runs AS
SELECT
    r.run_id, r.sweep_id, r.kind,
    -- A query of its own, so that it costs nothing where it is not asked for.
    (
        SELECT taskvec.run_state(
            count(*),
            count(*) FILTER (WHERE j.state IN ('waiting', 'ready', 'running')),
            count(*) FILTER (WHERE j.state = 'running'),
            count(*) FILTER (WHERE j.state = 'done'),
            count(*) FILTER (WHERE j.state = 'failed'),
            count(*) FILTER (WHERE j.state = 'cancelled')
        )
        FROM taskvec.jobs j WHERE j.run_id = r.run_id
    ) AS state,
    r.seed, r.params, r.spec
FROM taskvec.runs r;

COMMENT ON VIEW results.runs IS 'Points of a sweep: one model trained and evaluated under one full configuration and seed.';
COMMENT ON COLUMN results.runs.run_id IS 'Identifier, counted from 1 over all sweeps.';
COMMENT ON COLUMN results.runs.sweep_id IS 'The sweep it belongs to.';
COMMENT ON COLUMN results.runs.kind IS 'pretrain, or selftest (computes nothing).';
COMMENT ON COLUMN results.runs.state IS 'waiting (no job has started), running, done (every job is done), failed (all have ended, at least one failed) or cancelled.';
COMMENT ON COLUMN results.runs.seed IS 'Seed of every random stream of the run.';
COMMENT ON COLUMN results.runs.params IS 'Only what the sweep varies: dotted path to value.';
COMMENT ON COLUMN results.runs.spec IS 'The full configuration, every default made explicit.';

CREATE VIEW results.jobs AS
SELECT
    j.job_id, j.run_id, j.sweep_id, j.kind, j.step, j.state, j.attempts, w.name AS worker,
    j.started_at, j.finished_at, j.error, j.cached, j.worker_id
FROM taskvec.jobs j LEFT JOIN taskvec.workers w USING (worker_id);

COMMENT ON VIEW results.jobs IS 'What is scheduled: segments of training, and analyses of one checkpoint each.';
COMMENT ON COLUMN results.jobs.job_id IS 'Identifier, counted from 1 over all sweeps.';
COMMENT ON COLUMN results.jobs.run_id IS 'The run it belongs to.';
COMMENT ON COLUMN results.jobs.sweep_id IS 'The sweep it belongs to.';
COMMENT ON COLUMN results.jobs.kind IS 'train, baselines, icl, td or selftest.';
COMMENT ON COLUMN results.jobs.step IS 'Step of the checkpoint that is analysed, or last step of the training segment; null where no step applies.';
COMMENT ON COLUMN results.jobs.state IS 'waiting (for other jobs), ready, running, done, failed (no tries left), skipped (a job it needs did not succeed) or cancelled.';
COMMENT ON COLUMN results.jobs.attempts IS 'Attempts so far; 0 for a job that a stored result satisfied.';
COMMENT ON COLUMN results.jobs.worker IS 'Name of the worker of the newest attempt; null before the first.';
COMMENT ON COLUMN results.jobs.started_at IS 'When the newest attempt started.';
COMMENT ON COLUMN results.jobs.finished_at IS 'When the job ended; null while it has not.';
COMMENT ON COLUMN results.jobs.error IS 'Why it failed or was skipped, or why its newest ended attempt failed; null when done.';
COMMENT ON COLUMN results.jobs.cached IS 'True if a stored result satisfied it when it was submitted.';
COMMENT ON COLUMN results.jobs.worker_id IS 'Identifier of that worker, which is unique where names are not.';

CREATE VIEW results.checkpoints AS
SELECT
    c.checkpoint_id, j.run_id, c.step, b.bytes, encode(digest, 'hex') AS digest, c.created_at, c.purpose
FROM taskvec.jobs j JOIN taskvec.checkpoints c USING (result_id) JOIN taskvec.blobs b USING (digest)
WHERE NOT j.repeats;

COMMENT ON VIEW results.checkpoints IS 'Stored states of a run. Runs that share a training segment share its checkpoints: one row for each run.';
COMMENT ON COLUMN results.checkpoints.checkpoint_id IS 'Identifier, for `taskvec checkpoint download`.';
COMMENT ON COLUMN results.checkpoints.run_id IS 'A run that has it.';
COMMENT ON COLUMN results.checkpoints.step IS 'Training steps behind it; 0 is the untrained model.';
COMMENT ON COLUMN results.checkpoints.bytes IS 'Size of the safetensors file.';
COMMENT ON COLUMN results.checkpoints.digest IS 'BLAKE3 of the file, in hexadecimal.';
COMMENT ON COLUMN results.checkpoints.created_at IS 'When it was stored.';
COMMENT ON COLUMN results.checkpoints.purpose IS 'weights (for analysis, kept) or resume (full training state, removed by `taskvec checkpoint gc` once no job needs it).';

CREATE VIEW results.train_loss AS
SELECT j.run_id, t.step, t.loss, t.learning_rate, t.sequences_per_second
FROM taskvec.jobs j JOIN taskvec.train_loss t USING (result_id)
WHERE j.kind = 'train' AND NOT j.repeats;

COMMENT ON VIEW results.train_loss IS 'Training loss, every `train.log_every` steps of the finished segments.';
COMMENT ON COLUMN results.train_loss.run_id IS 'The run.';
COMMENT ON COLUMN results.train_loss.step IS 'The update whose loss this is; the first update is step 1.';
COMMENT ON COLUMN results.train_loss.loss IS 'Mean squared error over the batch and all positions, before the update.';
COMMENT ON COLUMN results.train_loss.learning_rate IS 'Learning rate of the update.';
COMMENT ON COLUMN results.train_loss.sequences_per_second IS 'Training speed on the machine that computed it; a time, not a result.';

CREATE VIEW results.icl AS
SELECT j.run_id, j.step, i.latent_task, i.shots, i.position, i.metric, i.value, i.stderr, i.n
FROM taskvec.jobs j JOIN taskvec.icl i USING (result_id)
WHERE j.kind = 'icl' AND NOT j.repeats;

COMMENT ON VIEW results.icl IS 'In-context learning performance of each checkpoint on held-out sequences.';
COMMENT ON COLUMN results.icl.run_id IS 'The run.';
COMMENT ON COLUMN results.icl.step IS 'Step of the checkpoint.';
COMMENT ON COLUMN results.icl.latent_task IS 'Latent task of the sequences: B1, B2 … for bases.';
COMMENT ON COLUMN results.icl.shots IS 'Demonstrations before the last query of the sequence: K - 1 for synthetic data.';
COMMENT ON COLUMN results.icl.position IS 'Which of the K answers is predicted, from 1; null for the mean over positions.';
COMMENT ON COLUMN results.icl.metric IS 'mse (squared error, lower is better) or accuracy (exact match, higher is better).';
COMMENT ON COLUMN results.icl.value IS 'Mean of the metric over the sequences.';
COMMENT ON COLUMN results.icl.stderr IS 'Standard error of the value over the sequences.';
COMMENT ON COLUMN results.icl.n IS 'Number of sequences.';

CREATE VIEW results.baselines AS
SELECT j.run_id, b.latent_task, b.position, b.estimator, b.mse
FROM taskvec.jobs j JOIN taskvec.baselines b USING (result_id)
WHERE j.kind = 'baselines' AND NOT j.repeats;

COMMENT ON VIEW results.baselines IS 'Error of reference estimators on the same held-out sequences as results.icl.';
COMMENT ON COLUMN results.baselines.run_id IS 'The run.';
COMMENT ON COLUMN results.baselines.latent_task IS 'Latent task of the sequences.';
COMMENT ON COLUMN results.baselines.position IS 'Which of the K answers is predicted, from 1; null for the mean over positions.';
COMMENT ON COLUMN results.baselines.estimator IS 'zero (predicts 0), ridge and lasso (on all coordinates), oracle (Bayes estimate given the true basis) or bayes_mixture (Bayes estimate over all bases).';
COMMENT ON COLUMN results.baselines.mse IS 'Mean squared error over the sequences.';

CREATE VIEW results.td AS
SELECT j.run_id, j.step, t.layer, t.site, t.latent_task, t.shots, t.k, t.n, t.value, t.stderr
FROM taskvec.jobs j JOIN taskvec.td t USING (result_id)
WHERE j.kind = 'td' AND NOT j.repeats;

COMMENT ON VIEW results.td IS 'Task decodability: how often the k nearest hidden states name the latent task of a left-out one.';
COMMENT ON COLUMN results.td.run_id IS 'The run.';
COMMENT ON COLUMN results.td.step IS 'Step of the checkpoint.';
COMMENT ON COLUMN results.td.layer IS 'Block whose output is read, from 1; 0 is the embedding.';
COMMENT ON COLUMN results.td.site IS 'x (the position that predicts the answer), y (the last answer before it) or s (as x, with one query shared by all sequences).';
COMMENT ON COLUMN results.td.latent_task IS 'Latent task of the left-out sequences.';
COMMENT ON COLUMN results.td.shots IS 'Demonstrations before the query.';
COMMENT ON COLUMN results.td.k IS 'Neighbours that vote.';
COMMENT ON COLUMN results.td.n IS 'Sequences of this latent task.';
COMMENT ON COLUMN results.td.value IS 'Fraction of them whose neighbours name the right task, 0 to 1; chance is 1 / number of tasks.';
COMMENT ON COLUMN results.td.stderr IS 'Standard error of the value.';

CREATE VIEW results.td_bound AS
SELECT j.run_id, b.latent_task, b.shots, b.value
FROM taskvec.jobs j JOIN taskvec.td_bound b USING (result_id)
WHERE j.kind = 'baselines' AND NOT j.repeats;

COMMENT ON VIEW results.td_bound IS 'What the ideal observer reaches on the sequences of results.td: some are ambiguous, so TD cannot exceed this by more than chance.';
COMMENT ON COLUMN results.td_bound.run_id IS 'The run.';
COMMENT ON COLUMN results.td_bound.latent_task IS 'Latent task of the sequences.';
COMMENT ON COLUMN results.td_bound.shots IS 'Demonstrations that the observer sees.';
COMMENT ON COLUMN results.td_bound.value IS 'How often the exact Bayes posterior over latent tasks is highest at the true one, 0 to 1.';

CREATE VIEW results.td_vs_icl AS
SELECT
    t.run_id, t.step, t.layer, t.site, t.latent_task, t.shots, t.value AS td, i.metric, i.value AS icl, t.k
FROM results.td t
JOIN results.icl i USING (run_id, step, latent_task, shots)
WHERE i.position IS NULL;

COMMENT ON VIEW results.td_vs_icl IS 'Task decodability beside ICL performance of the same checkpoint and latent task.';
COMMENT ON COLUMN results.td_vs_icl.run_id IS 'The run.';
COMMENT ON COLUMN results.td_vs_icl.step IS 'Step of the checkpoint.';
COMMENT ON COLUMN results.td_vs_icl.layer IS 'Block whose output is read for TD, from 1; 0 is the embedding.';
COMMENT ON COLUMN results.td_vs_icl.site IS 'Position at which TD is read: x, y or s, as in results.td.';
COMMENT ON COLUMN results.td_vs_icl.latent_task IS 'The latent task.';
COMMENT ON COLUMN results.td_vs_icl.shots IS 'Demonstrations before the query.';
COMMENT ON COLUMN results.td_vs_icl.td IS 'Task decodability, as results.td.value.';
COMMENT ON COLUMN results.td_vs_icl.metric IS 'mse or accuracy, as in results.icl.';
COMMENT ON COLUMN results.td_vs_icl.icl IS 'ICL performance, mean over positions, as results.icl.value.';
COMMENT ON COLUMN results.td_vs_icl.k IS 'Neighbours that vote, as in results.td.';
