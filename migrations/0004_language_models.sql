-- Results on language models: pairwise decodability, interventions (in models of every kind) and the logit lens; jobs of
-- the new kinds in the views that there are.

CREATE TABLE taskvec.td_pairs (
    result_id bigint NOT NULL,
    value double precision NOT NULL,
    layer integer NOT NULL,
    shots integer NOT NULL,
    site text COLLATE "C" NOT NULL,
    latent_task_a text COLLATE "C" NOT NULL,
    latent_task_b text COLLATE "C" NOT NULL,
    PRIMARY KEY (result_id, layer, site, latent_task_a, latent_task_b, shots)
);

CREATE TABLE taskvec.interventions (
    result_id bigint NOT NULL,
    baseline double precision NOT NULL,
    patched double precision NOT NULL,
    layer integer NOT NULL,
    shots integer NOT NULL,
    replicate integer NOT NULL,
    n integer NOT NULL,
    site text COLLATE "C" NOT NULL,
    positions text COLLATE "C" NOT NULL,
    mode text COLLATE "C" NOT NULL,
    source_task text COLLATE "C" NOT NULL,
    target_task text COLLATE "C" NOT NULL,
    metric text COLLATE "C" NOT NULL,
    PRIMARY KEY (
        result_id, layer, site, positions, mode, source_task, target_task, shots, metric, replicate
    )
);

CREATE TABLE taskvec.lens (
    result_id bigint NOT NULL,
    accuracy double precision NOT NULL,
    log_prob double precision NOT NULL,
    rank double precision NOT NULL,
    layer integer NOT NULL,
    shots integer NOT NULL,
    n integer NOT NULL,
    latent_task text COLLATE "C" NOT NULL,
    PRIMARY KEY (result_id, layer, latent_task, shots)
);
-- One layer over many results: how a whole sweep develops.
CREATE INDEX td_pairs_by_layer ON taskvec.td_pairs (layer, site, result_id) INCLUDE (value);
CREATE INDEX interventions_by_layer ON taskvec.interventions (layer, site, result_id) INCLUDE (baseline, patched);
CREATE INDEX lens_by_layer ON taskvec.lens (layer, result_id) INCLUDE (accuracy);

-- The views that there are, with the jobs of language models. Replacing a view keeps its comments and who may read it.

CREATE OR REPLACE VIEW results.train_loss AS
SELECT j.run_id, t.step, t.loss, t.learning_rate, t.sequences_per_second
FROM taskvec.jobs j JOIN taskvec.train_loss t USING (result_id)
WHERE j.kind IN ('train', 'finetune') AND NOT j.repeats;

CREATE OR REPLACE VIEW results.icl AS
SELECT j.run_id, j.step, i.latent_task, i.shots, i.position, i.metric, i.value, i.stderr, i.n
FROM taskvec.jobs j JOIN taskvec.icl i USING (result_id)
WHERE j.kind IN ('icl', 'measure') AND NOT j.repeats;

CREATE OR REPLACE VIEW results.td AS
SELECT j.run_id, j.step, t.layer, t.site, t.latent_task, t.shots, t.k, t.n, t.value, t.stderr
FROM taskvec.jobs j JOIN taskvec.td t USING (result_id)
WHERE j.kind IN ('td', 'measure') AND NOT j.repeats;

COMMENT ON VIEW results.runs IS 'Points of a sweep: one model trained, fine-tuned or evaluated under one full configuration and seed.';
COMMENT ON COLUMN results.runs.kind IS 'pretrain, finetune, evaluate, or selftest (computes nothing).';
COMMENT ON COLUMN results.jobs.kind IS 'train, baselines, icl, td, measure (icl, td, td_pairs and lens of a language model at one number of shots), interventions, finetune or selftest.';
COMMENT ON COLUMN results.jobs.step IS 'Step of the checkpoint or of the revision that is analysed (0 for a pretrained model without one), or last step of the training segment; null where no step applies.';
COMMENT ON COLUMN results.checkpoints.step IS 'Training steps behind it; 0 is the untrained model, or the pretrained one before fine-tuning.';
COMMENT ON COLUMN results.checkpoints.purpose IS 'weights (for analysis, kept; of a fine-tuned model the adapters) or resume (full training state, removed by `taskvec checkpoint gc` once no job needs it).';
COMMENT ON COLUMN results.train_loss.loss IS 'Before the update: mean squared error over the batch and all positions; of a language model, mean cross-entropy (nats) over the answer tokens of the batch.';
COMMENT ON VIEW results.icl IS 'In-context learning performance of each checkpoint or pretrained model, on held-out sequences or prompts.';
COMMENT ON COLUMN results.icl.step IS 'Step of the checkpoint or of the revision; 0 for a pretrained model without one.';
COMMENT ON COLUMN results.icl.latent_task IS 'Latent task of the sequences: B1, B2 … for bases, AND, Noun, Null … for tasks in words.';
COMMENT ON COLUMN results.icl.shots IS 'Demonstrations before the last query of the sequence: K - 1 for synthetic data.';
COMMENT ON COLUMN results.icl.position IS 'Which of the K answers is predicted, from 1; null for the mean over positions, and always for language models.';
COMMENT ON COLUMN results.icl.metric IS 'mse (squared error, lower is better) or accuracy (exact match of the whole greedy answer, higher is better).';
COMMENT ON COLUMN results.icl.n IS 'Number of sequences or prompts.';
COMMENT ON COLUMN results.td.step IS 'Step of the checkpoint or of the revision; 0 for a pretrained model without one.';
COMMENT ON COLUMN results.td.site IS 'x (the position that predicts the answer; of a language model the last token before it), y (the last answer before it; its last token) or s (as x, with one query shared by all sequences; synthetic data only).';
COMMENT ON COLUMN results.td.n IS 'Sequences or prompts of this latent task.';

CREATE VIEW results.td_pairs AS
SELECT j.run_id, j.step, p.layer, p.site, p.latent_task_a, p.latent_task_b, p.shots, p.value
FROM taskvec.jobs j JOIN taskvec.td_pairs p USING (result_id)
WHERE j.kind = 'measure' AND NOT j.repeats;

COMMENT ON VIEW results.td_pairs IS 'Task decodability between two latent tasks alone: which of them can be told apart.';
COMMENT ON COLUMN results.td_pairs.run_id IS 'The run.';
COMMENT ON COLUMN results.td_pairs.step IS 'Step of the checkpoint or of the revision; 0 for a pretrained model without one.';
COMMENT ON COLUMN results.td_pairs.layer IS 'Block whose output is read, from 1; 0 is the embedding.';
COMMENT ON COLUMN results.td_pairs.site IS 'Position at which it is read: x or y, as in results.td.';
COMMENT ON COLUMN results.td_pairs.latent_task_a IS 'One task of the pair, the first in the order of the run''s tasks.';
COMMENT ON COLUMN results.td_pairs.latent_task_b IS 'The other.';
COMMENT ON COLUMN results.td_pairs.shots IS 'Demonstrations before the query.';
COMMENT ON COLUMN results.td_pairs.value IS 'Fraction of the samples of both whose neighbours among both name the right one, 0 to 1; chance is 0.5.';

CREATE VIEW results.interventions AS
SELECT
    j.run_id, j.step, i.layer, i.site, i.positions, i.mode, i.source_task, i.target_task, i.metric, i.baseline,
    i.patched, i.replicate, i.n, i.shots
FROM taskvec.jobs j JOIN taskvec.interventions i USING (result_id)
WHERE j.kind = 'interventions' AND NOT j.repeats;

COMMENT ON VIEW results.interventions IS 'What moving the states of a source task towards the mean state of a target task does to the metric of the source task.';
COMMENT ON COLUMN results.interventions.run_id IS 'The run.';
COMMENT ON COLUMN results.interventions.step IS 'Step of the checkpoint or of the revision; 0 for a pretrained model without one.';
COMMENT ON COLUMN results.interventions.layer IS 'Block whose output is changed, from 1; 0 is the embedding.';
COMMENT ON COLUMN results.interventions.site IS 'Positions that are changed: x (those that predict an answer) or y (the answers).';
COMMENT ON COLUMN results.interventions.positions IS 'last (the last one of the site) or all.';
COMMENT ON COLUMN results.interventions.mode IS 'replace (the state becomes the mean of the target task) or add_mean_difference (the mean of the target task less the mean over tasks is added).';
COMMENT ON COLUMN results.interventions.source_task IS 'Latent task of the sequences.';
COMMENT ON COLUMN results.interventions.target_task IS 'Latent task towards whose mean the states are moved.';
COMMENT ON COLUMN results.interventions.metric IS 'mse (lower is better) or accuracy (higher is better), as in results.icl.';
COMMENT ON COLUMN results.interventions.baseline IS 'The metric without the intervention, on the same sequences.';
COMMENT ON COLUMN results.interventions.patched IS 'The metric with it.';
COMMENT ON COLUMN results.interventions.replicate IS 'Which independent draw of sequences, from 1.';
COMMENT ON COLUMN results.interventions.n IS 'Sequences of the source task.';
COMMENT ON COLUMN results.interventions.shots IS 'Demonstrations before the query: K - 1 for synthetic data.';

CREATE VIEW results.lens AS
SELECT j.run_id, j.step, l.layer, l.latent_task, l.shots, l.accuracy, l.log_prob, l.rank, l.n
FROM taskvec.jobs j JOIN taskvec.lens l USING (result_id)
WHERE j.kind = 'measure' AND NOT j.repeats;

COMMENT ON VIEW results.lens IS 'Logit lens: what the final norm and the unembedding make of each layer''s state before the answer, as to the first token of the right answer.';
COMMENT ON COLUMN results.lens.run_id IS 'The run.';
COMMENT ON COLUMN results.lens.step IS 'Step of the checkpoint or of the revision; 0 for a pretrained model without one.';
COMMENT ON COLUMN results.lens.layer IS 'Block whose output is read, from 1; 0 is the embedding, and the last layer what the model says.';
COMMENT ON COLUMN results.lens.latent_task IS 'Latent task of the prompts.';
COMMENT ON COLUMN results.lens.shots IS 'Demonstrations before the query.';
COMMENT ON COLUMN results.lens.accuracy IS 'How often the token is the first choice, 0 to 1.';
COMMENT ON COLUMN results.lens.log_prob IS 'Mean log probability (nats) of the token.';
COMMENT ON COLUMN results.lens.rank IS 'Mean rank of the token among all; 1 is the first choice.';
COMMENT ON COLUMN results.lens.n IS 'Number of prompts.';

-- Null has no answer that could be right, so it has no part in the line. Where all points have one TD (or one metric), sums
-- of squares are rounding errors instead of 0, and what follows from them is nonsense: null.
CREATE VIEW results.td_vs_icl_fit AS
SELECT
    run_id, step, layer, site, metric,
    CASE WHEN min(td) < max(td) THEN regr_slope(icl, td) END AS slope,
    CASE WHEN min(td) < max(td) THEN regr_intercept(icl, td) END AS intercept,
    CASE WHEN min(td) < max(td) AND min(icl) < max(icl) THEN regr_r2(icl, td) END AS r2,
    regr_count(icl, td) AS n, k
FROM results.td_vs_icl
WHERE latent_task <> 'Null'
GROUP BY run_id, step, layer, site, metric, k;

COMMENT ON VIEW results.td_vs_icl_fit IS 'The least-squares line of ICL performance over task decodability, through one point for each latent task but Null and each number of shots.';
COMMENT ON COLUMN results.td_vs_icl_fit.run_id IS 'The run.';
COMMENT ON COLUMN results.td_vs_icl_fit.step IS 'Step of the checkpoint or of the revision; 0 for a pretrained model without one.';
COMMENT ON COLUMN results.td_vs_icl_fit.layer IS 'Block whose output is read for TD, from 1; 0 is the embedding.';
COMMENT ON COLUMN results.td_vs_icl_fit.site IS 'Position at which TD is read: x, y or s, as in results.td.';
COMMENT ON COLUMN results.td_vs_icl_fit.metric IS 'mse or accuracy, as in results.icl.';
COMMENT ON COLUMN results.td_vs_icl_fit.slope IS 'Change of the metric per unit of TD; null where all points have the same TD.';
COMMENT ON COLUMN results.td_vs_icl_fit.intercept IS 'The metric that the line has at TD 0; null where all points have the same TD.';
COMMENT ON COLUMN results.td_vs_icl_fit.r2 IS 'R squared: the part of the metric''s variance that the line explains, 0 to 1; null where all points have the same TD or the same metric.';
COMMENT ON COLUMN results.td_vs_icl_fit.n IS 'Number of points.';
COMMENT ON COLUMN results.td_vs_icl_fit.k IS 'Neighbours that vote, as in results.td.';
