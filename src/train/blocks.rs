//! Training layer by layer: one layer's backward graph and its parameters are in memory at a time.
//!
//! A layer's inputs are what the compressed layers before it make, its targets what the original's
//! layer makes of the original's own inputs, so that it learns to undo what came before as well. The
//! error of a token is relative: the mean square of the difference over that of the target, so that
//! tokens with huge activations do not hide the others.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::checkpoint::Store;
use super::data::{Batch, Example, of_step};
use super::end_to_end::blank;
use super::extract::between;
use super::history::{Judged, Record};
use super::learner::{Learner, not_finite, origin, run, scalar, tokens};
use super::loss;
use super::parameters::Trainable;
use super::ranks::{Ranks, any, share};
use super::{Place, Settings, TrainError, Watch};
use crate::calib::hold::Hold;
use crate::exec::segments::{Blind, Held, Segment};
use crate::exec::{Engine, Options, Tensor};
use crate::ir::{Module, ValueId};
use crate::weights::FileCache;

/// What is trained on what.
pub struct Job<'a> {
    /// The rewritten model.
    pub module: &'a Module,
    /// Its files.
    pub files: &'a FileCache,
    /// What of it moves.
    pub trainables: &'a [Trainable],
    /// The original, ready to run.
    pub teacher: &'a Engine,
    /// Its module.
    pub original: &'a Module,
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
    /// Bytes of activations that stay in memory, of both models together; more is spilled.
    pub held: u64,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Trained {
    /// Weights that are other than before.
    pub bytes: HashMap<String, Bytes>,
    /// Each block's steps and judgements.
    pub blocks: Vec<(String, Vec<Record>)>,
    /// Bytes of activations that were spilled.
    pub spilled: u64,
    /// Why it ended early, with the blocks before done.
    pub failed: Option<TrainError>,
}

/// Batches with what lives between two blocks, of both models.
struct Stream<'a> {
    batches: Vec<Batch>,
    /// How many of them are to train on; the rest are to judge by.
    train: usize,
    student: Hold,
    teacher: Hold,
    job: &'a Job<'a>,
}

/// Trains layer by layer.
///
/// A run that was interrupted goes on with the first block that it had not finished; the bytes are
/// the same. Memory: a block's activations of a batch and its trained values five times, and what
/// lives between blocks as far as `held` allows.
///
/// # Errors
/// [`TrainError`]; models whose layers do not correspond.
pub fn train(job: &Job<'_>, watch: &mut dyn Watch) -> Result<Trained, TrainError> {
    let mut student = Engine::new(job.module, job.files, job.options)?;
    student.set_interrupt(watch.interrupt());
    let (own, theirs) = (student.segments(), job.teacher.segments());
    if own.list.len() != theirs.list.len() {
        let what = format!(
            "the model has {} parts and its teacher {}: their layers do not correspond",
            own.list.len(),
            theirs.list.len()
        );
        return Err(TrainError::Settings(what));
    }
    let mut stream = Stream::new(job)?;
    let mut done = Trained::default();
    // Parts that end in what the next one takes; the last one ends in the head.
    let count = own
        .list
        .iter()
        .filter(|s| s.leaves().next().is_some())
        .count();
    let mut before: Vec<ValueId> = Vec::new();
    let mut finished = 0;
    let mut saved = None;
    for (number, (segment, original)) in own.list.iter().zip(&theirs.list).enumerate() {
        let after: Vec<ValueId> = segment.leaves().collect();
        if after.is_empty() {
            continue;
        }
        corresponds(job, segment, original)?;
        let name = match segment.layer {
            Some(layer) => format!("layer {layer}"),
            None => format!("part {number}"),
        };
        let part = Part {
            job,
            number,
            place: Place {
                block: Some((finished, count)),
                steps: job.settings.block_steps,
            },
            before: &before,
            after: &after,
        };
        let known = job.store.load_block(number)?;
        let targets = stream.targets(original)?;
        let (bytes, records) = match known {
            Some(known) => known,
            None => {
                let made = part.train(&mut stream, &targets, watch);
                let left = || format!("in {name}; {}", job.store.left_by_blocks(saved));
                let made = match made.map_err(|error| error.with_kept(left)) {
                    Err(error) if error.is_numeric() && !done.blocks.is_empty() => {
                        done.failed = Some(error);
                        break;
                    }
                    made => made?,
                };
                job.store.save_block(number, &made.0, &made.1)?;
                made
            }
        };
        saved = Some(number);
        student.replace(&bytes)?;
        stream.advance(&student, segment)?;
        student.release_segment(segment);
        job.teacher.release_segment(original);
        done.bytes.extend(bytes);
        if !records.is_empty() {
            done.blocks.push((name, records));
        }
        before = after;
        finished += 1;
    }
    done.spilled = stream.student.spilled + stream.teacher.spilled;
    Ok(done)
}

/// Whether both models leave the same values behind a part.
fn corresponds(job: &Job<'_>, own: &Segment, theirs: &Segment) -> Result<(), TrainError> {
    let names = |module: &Module, segment: &Segment| -> Vec<String> {
        let graph = module.graphs.first();
        let name = |id: ValueId| graph.and_then(|g| g.value(id)).map(|v| v.name.clone());
        segment
            .leaves()
            .map(|id| name(id).unwrap_or_default())
            .collect()
    };
    let (own, theirs) = (names(job.module, own), names(job.original, theirs));
    match own.len() == theirs.len() {
        true => Ok(()),
        false => Err(TrainError::Settings(format!(
            "between layers the model has {} and its teacher {}: their layers do not correspond",
            own.join(", "),
            theirs.join(", ")
        ))),
    }
}

impl<'a> Stream<'a> {
    fn new(job: &'a Job<'a>) -> Result<Self, TrainError> {
        let each = job.settings.batch.max(1);
        let cut = |examples: &[Example]| -> Vec<Batch> {
            // Of one length as far as possible, so that little is filled.
            let mut order: Vec<usize> = (0..examples.len()).collect();
            order.sort_by_key(|&i| examples.get(i).map_or(0, |e| e.tokens.len()));
            order
                .chunks(each)
                .map(|some| Batch::new(examples, some))
                .collect()
        };
        let (train, validation) = (cut(job.examples), cut(job.validation));
        let count = train.len() + validation.len();
        let path = |name: &str| match job.ranks.rank() {
            0 => job.store.folder().join(name),
            rank => job.store.folder().join(format!("{name}-{rank}")),
        };
        Ok(Self {
            train: train.len(),
            batches: train.into_iter().chain(validation).collect(),
            student: Hold::new(count, job.held / 2, &path("train.held-student")),
            teacher: Hold::new(count, job.held / 2, &path("train.held-teacher")),
            job,
        })
    }

    /// Moves the teacher through a part; what it leaves are the targets.
    fn targets(&mut self, segment: &Segment) -> Result<Vec<bool>, TrainError> {
        let mut floats = Vec::new();
        for (at, batch) in self.batches.iter().enumerate() {
            let inputs = tokens(self.job.teacher, batch)?;
            let held = self.teacher.take(at).map_err(spilling)?;
            let left = self
                .job
                .teacher
                .run_segment(segment, &inputs, held, &mut Blind)?;
            floats = left
                .values
                .iter()
                .map(|(_, t)| t.floats().is_some())
                .collect();
            self.teacher.put(at, left).map_err(spilling)?;
        }
        Ok(floats)
    }

    /// Moves the student through a part that is trained.
    fn advance(&mut self, student: &Engine, segment: &Segment) -> Result<(), TrainError> {
        for (at, batch) in self.batches.iter().enumerate() {
            let inputs = tokens(student, batch)?;
            let held = self.student.take(at).map_err(spilling)?;
            let left = student.run_segment(segment, &inputs, held, &mut Blind)?;
            self.student.put(at, left).map_err(spilling)?;
        }
        Ok(())
    }

    /// What a batch's block reads, and the targets of its float results; `tokens_all` is the number
    /// of tokens that the loss is a mean over.
    fn inputs(
        &mut self,
        at: usize,
        part: &Part<'_>,
        targets: &[bool],
        all: f64,
    ) -> Result<Vec<(String, Tensor)>, TrainError> {
        let held = self.student.take(at).map_err(spilling)?;
        let wanted = self.teacher.take(at).map_err(spilling)?;
        let batch = &self.batches[at];
        let mut inputs = self.model_inputs(batch);
        inputs.extend(part.named(&held));
        let mut weights: Option<Vec<f32>> = None;
        let floats = wanted
            .values
            .iter()
            .zip(targets)
            .filter(|(_, float)| **float);
        for (i, ((_, tensor), _)) in floats.enumerate() {
            let values = tensor.floats().unwrap_or_default();
            weights.get_or_insert_with(|| weights_of(batch, values, tensor.width(), all));
            inputs.push((format!("{}.{i}", loss::TARGET), tensor.clone()));
        }
        let shape = [batch.examples.len(), batch.len];
        let weights = weights.unwrap_or_else(|| vec![0.0; shape[0] * shape[1]]);
        inputs.push((
            loss::TARGET_WEIGHTS.to_string(),
            Tensor::f32(&shape, weights),
        ));
        self.student.put(at, held).map_err(spilling)?;
        self.teacher.put(at, wanted).map_err(spilling)?;
        Ok(inputs)
    }

    fn model_inputs(&self, batch: &Batch) -> Vec<(String, Tensor)> {
        tokens(self.job.teacher, batch).unwrap_or_default()
    }

    /// Tokens of a batch that are no filling.
    fn tokens(&self, at: usize) -> f64 {
        let examples = match at < self.train {
            true => self.job.examples,
            false => self.job.validation,
        };
        let batch = &self.batches[at];
        let lengths = batch.examples.iter().filter_map(|&i| examples.get(i));
        lengths.map(|e| e.tokens.len() as f64).sum()
    }
}

/// One over the target's mean square, and nothing for filling: `Σ_t w_t · mean square error` is the
/// mean relative error.
fn weights_of(batch: &Batch, target: &[f32], width: usize, all: f64) -> Vec<f32> {
    let rows = target.chunks(width.max(1)).enumerate();
    let weight = |(row, values): (usize, &[f32])| {
        // The last token of an example predicts nothing and counts all the same; filling repeats it.
        let (example, t) = (row / batch.len.max(1), row % batch.len.max(1));
        let last = (0..batch.len).rposition(|t| batch.labels[example * batch.len + t] != -100);
        let counts = last.is_none_or(|last| t <= last + 1);
        let square: f64 = values.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let mean = square / width.max(1) as f64;
        if counts && mean > 0.0 {
            (1.0 / (mean * all)) as f32
        } else {
            0.0
        }
    };
    rows.map(weight).collect()
}

fn spilling(error: crate::calib::CalibError) -> TrainError {
    TrainError::Settings(error.to_string())
}

/// A block that is trained.
struct Part<'a> {
    job: &'a Job<'a>,
    number: usize,
    place: Place,
    before: &'a [ValueId],
    after: &'a [ValueId],
}

impl Part<'_> {
    /// Values between blocks under the names that the block's graph has for them.
    fn named(&self, held: &Held) -> Vec<(String, Tensor)> {
        let graph = self.job.module.graphs.first();
        let name = |slot: usize| {
            let value = graph.and_then(|g| g.value(ValueId::new(slot)));
            let name = value.map_or("", |v| &v.name);
            match name.is_empty() {
                true => format!("held.{slot}"),
                false => name.to_string(),
            }
        };
        let values = held.values.iter();
        values
            .map(|(slot, tensor)| (name(*slot), tensor.clone()))
            .collect()
    }

    /// Trains the block; gives its best weights.
    fn train(
        &self,
        stream: &mut Stream<'_>,
        targets: &[bool],
        watch: &mut dyn Watch,
    ) -> Result<(HashMap<String, Bytes>, Vec<Record>), TrainError> {
        let (job, settings) = (self.job, self.job.settings);
        let block = between(job.module, self.before, self.after)?;
        let results = self.after.iter().zip(targets).filter(|(_, float)| **float);
        let results: Vec<ValueId> = results.map(|(value, _)| *value).collect();
        let own = super::grad::parameters(&block);
        if results.is_empty() || !job.trainables.iter().any(|t| own.contains(&t.parameter)) {
            return Ok((HashMap::new(), Vec::new()));
        }
        let block = loss::on_results(&block, &results);
        let mut learner = Learner::new(
            &block,
            job.trainables,
            settings,
            job.options,
            job.files,
            watch,
        )?;
        let mut judge = Engine::new(&block, job.files, job.options)?;
        judge.set_interrupt(watch.interrupt());
        let error = self.judge(&judge, stream, targets)?;
        let mut best = (settings.measure(&error), HashMap::new());
        let first = Record {
            judged: Some(error),
            ..blank(0)
        };
        watch.record(self.place, &first);
        let mut records = vec![first];
        let every = settings.judge_every.clamp(1, settings.block_steps.max(1));
        let mut since = 0;
        for step in 0..settings.block_steps {
            if any(watch.interrupt().load(Ordering::Relaxed), job.ranks) {
                return Err(TrainError::Interrupted);
            }
            let seed = settings.seed ^ ((self.number as u64 + 1) << 32);
            let chosen = of_step(stream.train, settings.accumulate.max(1), seed, step);
            let all: f64 = chosen.iter().map(|&at| stream.tokens(at)).sum();
            let mut sum = 0.0;
            for &at in share(&chosen, job.ranks) {
                let inputs = stream.inputs(at, self, targets, all)?;
                sum += learner.add(&inputs)?.iter().sum::<f64>();
                if !f64::is_finite(sum) {
                    break;
                }
            }
            let sum = job.ranks.total(sum);
            if !sum.is_finite() {
                judge.replace(&learner.encoded()?)?;
                for &at in &chosen {
                    let inputs = stream.inputs(at, self, targets, all)?;
                    let from = origin(&judge, &block, &inputs);
                    if from.is_some() {
                        return Err(not_finite(step + 1, from));
                    }
                }
                return Err(not_finite(step + 1, None));
            }
            learner.gather(job.ranks);
            let done = learner.step(&settings.schedule, settings.block_steps)?;
            let mut record = Record {
                loss: Some(sum),
                learning_rate: Some(done.rate),
                gradient_norm: Some(done.norm),
                tokens: all as u64,
                ..blank(step + 1)
            };
            if (step + 1).is_multiple_of(every) || step + 1 == settings.block_steps {
                let bytes = learner.encoded()?;
                judge.replace(&bytes)?;
                let judged = self.judge(&judge, stream, targets)?;
                record.judged = Some(judged);
                since += 1;
                if settings.measure(&judged) < best.0 {
                    best = (settings.measure(&judged), bytes);
                    since = 0;
                }
            }
            watch.record(self.place, &record);
            records.push(record);
            if since >= settings.patience {
                break;
            }
        }
        Ok((best.1, records))
    }

    /// The mean relative error over the validation batches, or over the training ones where there
    /// are none.
    fn judge(
        &self,
        engine: &Engine,
        stream: &mut Stream<'_>,
        targets: &[bool],
    ) -> Result<Judged, TrainError> {
        let all = match stream.train < stream.batches.len() {
            true => stream.train..stream.batches.len(),
            false => 0..stream.train,
        };
        let count: f64 = all.clone().map(|at| stream.tokens(at)).sum();
        let mut sum = 0.0;
        let all: Vec<usize> = all.collect();
        for &at in share(&all, self.job.ranks) {
            let inputs = stream.inputs(at, self, targets, count)?;
            let outputs = run(engine, &inputs)?;
            sum += outputs.iter().map(|(_, t)| scalar(t)).sum::<f64>();
        }
        let sum = self.job.ranks.total(sum);
        Ok(Judged {
            error: Some(sum),
            ..Judged::default()
        })
    }
}
