//! Training of a whole language model on its own predictions and a teacher's.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::checkpoint::{Best, State, Store};
use super::data::{Batch, Example, of_step};
use super::history::{Judged, Record};
use super::learner::{Learner, not_finite, origin, run, scalar, tokens};
use super::loss::{self, Losses};
use super::parameters::Trainable;
use super::ranks::{Ranks, any, share};
pub use super::teacher::Teacher;
use super::teacher::Use;
use super::{Place, Settings, TrainError, Watch};
use crate::exec::{Engine, Options, Tensor};
use crate::ir::Module;
use crate::weights::FileCache;

/// What is trained on what.
pub struct Job<'a> {
    /// The rewritten model.
    pub module: &'a Module,
    /// Its files.
    pub files: &'a FileCache,
    /// What of it moves.
    pub trainables: &'a [Trainable],
    /// The original.
    pub teacher: Option<&'a Teacher>,
    /// Examples to train on.
    pub examples: &'a [Example],
    /// Examples to judge by.
    pub validation: &'a [Example],
    /// How.
    pub settings: &'a Settings,
    /// Threads.
    pub options: &'a Options,
    /// Where checkpoints go.
    pub store: &'a Store,
    /// Who shares the batches.
    pub ranks: &'a dyn Ranks,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Trained {
    /// Weights that are other than before.
    pub bytes: HashMap<String, Bytes>,
    /// Steps and judgements.
    pub records: Vec<Record>,
    /// The step that the weights are of; 0 where nothing was better than the untrained model.
    pub kept: u64,
    /// Why it ended early with a state that is better than the untrained one.
    pub failed: Option<TrainError>,
}

/// Trains end to end; gives the state that was best on the validation examples.
///
/// The same settings, model and data give the same bytes for any number of threads, and for a run
/// that was interrupted and gone on with. Memory: activations of a batch (of a layer, with
/// `recompute`), logits of a batch, and the trained values five times.
///
/// # Errors
/// [`TrainError`].
pub fn train(job: &Job<'_>, watch: &mut dyn Watch) -> Result<Trained, TrainError> {
    let settings = job.settings;
    let kl = settings.kl > 0.0;
    if kl && job.teacher.is_none() {
        let what = "a KL divergence is from a teacher: name the original with --teacher";
        return Err(TrainError::Settings(what.to_string()));
    }
    let mut judge = Judge::new(job, watch)?;
    let losses = Losses {
        cross_entropy: settings.cross_entropy > 0.0,
        kl,
        top: job.teacher.is_some_and(|teacher| teacher.top().is_some()),
    };
    let with_losses = loss::on_logits(job.module, losses)?;
    let mut learner = Learner::new(
        &with_losses,
        job.trainables,
        settings,
        job.options,
        job.files,
        watch,
    )?;
    let place = Place {
        block: None,
        steps: settings.steps,
    };
    let (mut saved, mut failed) = (None, None);
    let mut state = match job.store.load()? {
        Some(state) => {
            saved = Some(state.step);
            learner.restore(state.moving.clone(), state.step)?;
            state
        }
        None => {
            let judged = judge.run(&HashMap::new())?;
            let record = Record {
                judged: Some(judged),
                ..blank(0)
            };
            watch.record(place, &record);
            State {
                step: 0,
                moving: Vec::new(),
                best: Best {
                    judged,
                    ..Best::default()
                },
                records: vec![record],
            }
        }
    };
    while state.step < settings.steps && state.best.since < settings.patience {
        if any(watch.interrupt().load(Ordering::Relaxed), job.ranks) {
            keep(job.store, &mut state, &learner)?;
            return Err(TrainError::Interrupted);
        }
        let stepped = one_step(job, &mut learner, &mut judge, state.step, losses);
        let mut record = match stepped.map_err(|e| e.with_kept(|| job.store.left(saved))) {
            Ok(record) => record,
            Err(error) if error.is_numeric() && state.best.step > 0 => {
                failed = Some(error);
                break;
            }
            Err(error) => return Err(error),
        };
        state.step = learner.step;
        let last = state.step == settings.steps;
        if last || state.step.is_multiple_of(settings.judge_every.max(1)) {
            let bytes = learner.encoded()?;
            let judged = judge.run(&bytes)?;
            record.judged = Some(judged);
            let better = settings.measure(&judged) < settings.measure(&state.best.judged);
            if better || job.validation.is_empty() {
                state.best = Best {
                    step: state.step,
                    judged,
                    since: 0,
                    bytes,
                };
            } else {
                state.best.since += 1;
            }
        }
        watch.record(place, &record);
        state.records.push(record);
        if state.step.is_multiple_of(settings.checkpoint_every.max(1)) {
            keep(job.store, &mut state, &learner)?;
            saved = Some(state.step);
        }
    }
    Ok(Trained {
        bytes: state.best.bytes,
        records: state.records,
        kept: state.best.step,
        failed,
    })
}

/// What the validation examples say of a job's model as it is.
///
/// # Errors
/// As [`train`].
pub fn judge(job: &Job<'_>, watch: &dyn Watch) -> Result<Judged, TrainError> {
    let judged = Judge::new(job, watch)?.run(&HashMap::new());
    // Layer by layer comes next, or has been: its memory is a layer's.
    job.teacher.iter().for_each(|teacher| teacher.forget());
    judged
}

pub(super) fn blank(step: u64) -> Record {
    Record {
        step,
        loss: None,
        learning_rate: None,
        gradient_norm: None,
        tokens: 0,
        judged: None,
    }
}

fn keep(store: &Store, state: &mut State, learner: &Learner<'_>) -> Result<(), TrainError> {
    state.moving = learner.moving.clone();
    let saved = store.save(state);
    state.moving = Vec::new();
    saved
}

/// Batches of a step, their gradients added up, and the step.
fn one_step(
    job: &Job<'_>,
    learner: &mut Learner<'_>,
    judge: &mut Judge<'_>,
    step: u64,
    losses: Losses,
) -> Result<Record, TrainError> {
    let settings = job.settings;
    let per_step = settings.batch * settings.accumulate;
    let chosen = of_step(job.examples.len(), per_step, settings.seed, step);
    // Every rank has something to do, and none more examples at once than are allowed.
    let fair = per_step.div_ceil(job.ranks.size().max(1));
    let batches = chosen.chunks(settings.batch.min(fair).max(1));
    let batches: Vec<Batch> = batches.map(|some| Batch::new(job.examples, some)).collect();
    let weight: f64 = batches.iter().map(Batch::weight).sum();
    if weight <= 0.0 {
        let what = "the examples of a step have nothing to predict".to_string();
        return Err(TrainError::Settings(what));
    }
    let mut sum = 0.0;
    for batch in share(&batches, job.ranks) {
        let inputs = inputs(job, batch, losses, weight)?;
        sum += learner.add(&inputs)?.iter().sum::<f64>();
        if !f64::is_finite(sum) {
            break;
        }
    }
    let sum = job.ranks.total(sum);
    if !sum.is_finite() {
        judge.engine.replace(&learner.encoded()?)?;
        // It may have been another rank's batch: all ranks look at all, and say the same.
        for batch in &batches {
            let inputs = inputs(job, batch, losses, weight)?;
            let from = origin(&judge.engine, &judge.module, &inputs);
            if from.is_some() {
                return Err(not_finite(step + 1, from));
            }
        }
        return Err(not_finite(step + 1, None));
    }
    learner.gather(job.ranks);
    let done = learner.step(&settings.schedule, settings.steps)?;
    Ok(Record {
        loss: Some(sum),
        learning_rate: Some(done.rate),
        gradient_norm: Some(done.norm),
        tokens: batches.iter().map(Batch::counted).sum(),
        ..blank(step + 1)
    })
}

/// Everything that a batch's losses read; weights sum to the parts of the objective.
fn inputs(
    job: &Job<'_>,
    batch: &Batch,
    losses: Losses,
    weight: f64,
) -> Result<Vec<(String, Tensor)>, TrainError> {
    let settings = job.settings;
    let teacher = job.teacher.filter(|_| losses.kl);
    let factors = (settings.cross_entropy / weight, settings.kl / weight);
    of_batch(batch, losses, teacher, factors, Use::Train)
}

fn of_batch(
    batch: &Batch,
    losses: Losses,
    teacher: Option<&Teacher>,
    factors: (f64, f64),
    use_of: Use,
) -> Result<Vec<(String, Tensor)>, TrainError> {
    let shape = [batch.examples.len(), batch.len];
    let weights = |factor: f64| {
        let values = batch
            .weights
            .iter()
            .map(|&w| (f64::from(w) * factor) as f32);
        Tensor::f32(&shape, values.collect())
    };
    let ids = || Tensor::i64(&shape, batch.tokens.clone());
    let positions = || (0..shape[0]).flat_map(|_| 0..shape[1] as i64).collect();
    let mut inputs = vec![
        ("input_ids".to_string(), ids()),
        (
            "attention_mask".to_string(),
            Tensor::i64(&shape, vec![1; batch.tokens.len()]),
        ),
        ("position_ids".to_string(), Tensor::i64(&shape, positions())),
    ];
    if losses.cross_entropy {
        let labels = Tensor::i64(&shape, batch.labels.clone());
        inputs.push((loss::LABELS.to_string(), labels));
        inputs.push((loss::LABEL_WEIGHTS.to_string(), weights(factors.0)));
    }
    if let Some(teacher) = teacher {
        let held = teacher.inputs(batch, use_of)?;
        inputs.extend(held.into_iter().map(|(name, t)| (name.to_string(), t)));
        inputs.push((loss::TEACHER_WEIGHTS.to_string(), weights(factors.1)));
    }
    Ok(inputs)
}

/// Judges states by the validation examples.
struct Judge<'a> {
    job: &'a Job<'a>,
    module: Module,
    engine: Engine,
    losses: Losses,
}

impl<'a> Judge<'a> {
    fn new(job: &'a Job<'a>, watch: &dyn Watch) -> Result<Self, TrainError> {
        let losses = Losses {
            cross_entropy: true,
            kl: job.teacher.is_some(),
            top: false,
        };
        let module = loss::on_logits(job.module, losses)?;
        let mut engine = Engine::new(&module, job.files, job.options)?;
        engine.set_interrupt(watch.interrupt());
        Ok(Self {
            job,
            module,
            engine,
            losses,
        })
    }

    /// Judges the model with some weights replaced; those of earlier calls stay.
    fn run(&mut self, bytes: &HashMap<String, Bytes>) -> Result<Judged, TrainError> {
        self.engine.replace(bytes)?;
        let all = self.job.validation;
        let weight: f64 = all.iter().map(Example::weight).sum();
        if all.is_empty() || weight <= 0.0 {
            return Ok(Judged::default());
        }
        let numbers: Vec<usize> = (0..all.len()).collect();
        let mut sums = [0f64; 2];
        let chunks: Vec<&[usize]> = numbers.chunks(self.job.settings.batch.max(1)).collect();
        for some in share(&chunks, self.job.ranks) {
            let batch = Batch::new(all, some);
            let factors = (1.0 / weight, 1.0 / weight);
            let inputs = of_batch(&batch, self.losses, self.job.teacher, factors, Use::Judge)?;
            let outputs = run(&self.engine, &inputs)?;
            for (sum, (_, loss)) in sums.iter_mut().zip(outputs) {
                *sum += scalar(&loss);
            }
        }
        let sums = sums.map(|sum| self.job.ranks.total(sum));
        Ok(Judged {
            cross_entropy: Some(sums[0]),
            kl: self.losses.kl.then_some(sums[1]),
            error: None,
        })
    }
}

/// Checks that a model takes what training gives, before anything is run.
///
/// # Errors
/// It takes other inputs than token ids, a mask and positions.
pub fn check(engine: &Engine) -> Result<(), TrainError> {
    tokens(engine, &Batch::new(&[], &[])).map(|_| ())
}
