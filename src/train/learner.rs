//! A backward graph with the values that it moves.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use super::data::Batch;
use super::grad::{self, Parameter, Wanted};
use super::optimizer::{Moving, Piece, Schedule, norm};
use super::parameters::Trainable;
use super::ranks::Ranks;
use super::{Settings, TrainError, Watch};
use crate::exec::segments::{Held, Tap};
use crate::exec::{Engine, Options, Tensor};
use crate::ir::{Module, OpId};
use crate::store::Reader;
use crate::weights::FileCache;

/// A backward graph with the values that it moves.
pub(super) struct Learner<'a> {
    engine: Engine,
    losses: usize,
    trainables: Vec<&'a Trainable>,
    /// Values and what the optimizer knows of them, in the order of the trainables.
    pub(super) moving: Vec<Moving>,
    sums: Vec<Vec<f32>>,
    threads: usize,
    /// Steps done.
    pub(super) step: u64,
}

/// Values that a thread moves at a time.
const PIECE: usize = 1 << 18;

/// What a step has done.
pub(super) struct Stepped {
    pub(super) rate: f64,
    pub(super) norm: f64,
}

impl<'a> Learner<'a> {
    /// A learner of those of the trainables that the module has; its outputs are losses.
    pub(super) fn new(
        module: &Module,
        trainables: &'a [Trainable],
        settings: &Settings,
        options: &Options,
        files: &FileCache,
        watch: &dyn Watch,
    ) -> Result<Self, TrainError> {
        let there: HashSet<Parameter> = grad::parameters(module).into_iter().collect();
        let own = trainables.iter().filter(|t| there.contains(&t.parameter));
        let trainables: Vec<&Trainable> = own.collect();
        let wanted = Wanted {
            parameters: trainables.iter().map(|t| t.parameter).collect(),
            values: Vec::new(),
            checkpoint: settings.recompute,
        };
        let joint = grad::differentiate(module, &wanted)?;
        if let Err(violations) = crate::ir::verify::verify(&joint.module) {
            let what = format!("the backward graph is not valid: {violations}");
            return Err(TrainError::Settings(what));
        }
        let mut engine = Engine::new(&joint.module, files, options)?;
        engine.set_interrupt(watch.interrupt());
        let reader = Reader::new(files);
        let mut moving = Vec::new();
        for trainable in &trainables {
            let values = start(module, &reader, trainable)?;
            moving.push(Moving::new(values, settings.schedule.relative));
        }
        Ok(Self {
            engine,
            losses: joint.outputs,
            sums: moving.iter().map(|m| vec![0.0; m.master.len()]).collect(),
            trainables,
            moving,
            threads: options.threads,
            step: 0,
        })
    }

    /// Runs a batch and adds up its gradients; gives the losses.
    pub(super) fn add(&mut self, inputs: &[(String, Tensor)]) -> Result<Vec<f64>, TrainError> {
        let mut outputs = run(&self.engine, inputs)?.into_iter();
        let losses = outputs.by_ref().take(self.losses);
        let losses: Vec<f64> = losses.map(|(_, t)| scalar(&t)).collect();
        for (sum, (_, gradient)) in self.sums.iter_mut().zip(outputs) {
            let values = gradient.floats().unwrap_or_default();
            if values.len() != sum.len() {
                let what = format!(
                    "a gradient has {} values, its tensor {}: this is a bug, please report it",
                    values.len(),
                    sum.len()
                );
                return Err(TrainError::Settings(what));
            }
            sum.iter_mut().zip(values).for_each(|(s, g)| *s += g);
        }
        Ok(losses)
    }

    /// Adds the gradients of all ranks.
    pub(super) fn gather(&mut self, ranks: &dyn Ranks) {
        self.sums.iter_mut().for_each(|sum| ranks.sum(sum));
    }

    /// Moves the values against the gradients that were added up.
    ///
    /// # Errors
    /// A gradient or a value is no number; the values are as they were then.
    pub(super) fn step(&mut self, schedule: &Schedule, steps: u64) -> Result<Stepped, TrainError> {
        let number = self.step + 1;
        for (sum, trainable) in self.sums.iter().zip(&self.trainables) {
            if !sum.iter().all(|g| g.is_finite()) {
                let what = format!("the gradient of {}", trainable.name);
                return Err(not_finite(number, Some(what)));
            }
        }
        let size = norm(&self.sums);
        let factor = match schedule.clip {
            Some(most) if size > most => most / size,
            _ => 1.0,
        };
        let rate = schedule.rate_at(number, steps);
        // Values move each by itself, so that it makes no difference who moves them.
        let threads = self.threads.max(1);
        let mut shares: Vec<Vec<Piece<'_>>> = (0..threads).map(|_| Vec::new()).collect();
        let mut next = 0;
        let all = self.moving.iter_mut().zip(&self.sums);
        for ((moving, sum), trainable) in all.zip(&self.trainables) {
            let decay = match trainable.kind.decays() {
                true => schedule.decay,
                false => 0.0,
            };
            for piece in moving.pieces(sum, PIECE, decay) {
                shares[next % threads].push(piece);
                next += 1;
            }
        }
        let move_all = |share: Vec<Piece<'_>>| {
            for piece in share {
                piece.step(factor, number, rate, schedule);
            }
        };
        match next {
            0..=1 => shares.into_iter().for_each(move_all),
            _ => std::thread::scope(|scope| {
                for share in shares {
                    scope.spawn(|| move_all(share));
                }
            }),
        }
        self.sums.iter_mut().for_each(|sum| sum.fill(0.0));
        self.step = number;
        let bytes = self.encoded()?;
        self.engine.replace(&bytes)?;
        Ok(Stepped { rate, norm: size })
    }

    /// The values as they would be stored.
    pub(super) fn encoded(&self) -> Result<HashMap<String, Bytes>, TrainError> {
        let mut bytes = HashMap::new();
        // Codes go by the scales and zero points of the same moment.
        for codes in [false, true] {
            for (trainable, moving) in self.trainables.iter().zip(&self.moving) {
                if (trainable.kind == super::parameters::Kind::Codes) != codes {
                    continue;
                }
                if !moving.master.iter().all(|x| x.is_finite()) {
                    return Err(not_finite(self.step, Some(trainable.name.clone())));
                }
                let parts = trainable.codec.encode(&moving.master, &bytes, self.threads);
                let beyond = |what| TrainError::Overflow {
                    step: self.step,
                    what,
                    kept: String::new(),
                };
                bytes.extend(parts.map_err(beyond)?);
            }
        }
        Ok(bytes)
    }

    /// Reads values of an earlier moment.
    ///
    /// # Errors
    /// They are not as many as the trainables have; values that their formats can't hold.
    pub(super) fn restore(&mut self, moving: Vec<Moving>, step: u64) -> Result<(), TrainError> {
        let lengths = |moving: &[Moving]| -> Vec<[usize; 3]> {
            let of = |m: &Moving| [m.master.len(), m.mean.len(), m.square.len()];
            moving.iter().map(of).collect()
        };
        if step > 0 && lengths(&moving) != lengths(&self.moving) {
            let what = "the checkpoint is damaged: its tensors have other lengths than the model's";
            return Err(TrainError::Settings(what.to_string()));
        }
        self.moving = moving;
        self.step = step;
        if step > 0 {
            let bytes = self.encoded()?;
            self.engine.replace(&bytes)?;
        }
        Ok(())
    }
}

/// What a run says that came to no number; [`TrainError::with_kept`] adds what is left.
pub(super) fn not_finite(step: u64, what: Option<String>) -> TrainError {
    let what =
        what.unwrap_or_else(|| "the loss (what goes into the linears is finite)".to_string());
    TrainError::NotFinite {
        step,
        what,
        kept: String::new(),
    }
}

/// Sees the first op whose input is no number.
struct Watchman {
    found: Option<OpId>,
}

impl Tap for Watchman {
    fn see(&mut self, op: OpId, x: &[f32], _: usize) {
        if self.found.is_none() && !x.iter().all(|x| x.is_finite()) {
            self.found = Some(op);
        }
    }
}

/// Where a batch's forward pass leaves the finite numbers: for errors alone, since it runs it again.
///
/// `engine` has the weights that did it; `module` is what it was made of. None where what goes into
/// the linears is finite.
pub(super) fn origin(
    engine: &Engine,
    module: &Module,
    inputs: &[(String, Tensor)],
) -> Option<String> {
    let mut watchman = Watchman { found: None };
    let mut held = Held::default();
    for segment in &engine.segments().list {
        match engine.run_segment(segment, inputs, held, &mut watchman) {
            Ok(left) if watchman.found.is_none() => held = left,
            _ => break,
        }
    }
    let graph = module.graphs.first();
    let op = |id: OpId| graph.and_then(|g| g.op(id)).map(|op| op.name.clone());
    let name = watchman.found.and_then(op)?;
    Some(format!("the loss (the first such value goes into {name})"))
}

/// The stored values of a trainable.
fn start(
    module: &Module,
    reader: &Reader<'_>,
    trainable: &Trainable,
) -> Result<Vec<f32>, TrainError> {
    let lost = || TrainError::Settings(format!("{} has no op", trainable.name));
    let graph = module.graphs.first().ok_or_else(lost)?;
    let ops = graph.walk();
    let mut ops = ops.iter().filter_map(|&id| graph.op(id));
    let op = ops.find(|op| grad::of_op(op).contains(&trainable.parameter));
    let op = op.ok_or_else(lost)?;
    trainable
        .codec
        .start(module, reader, op, trainable.parameter)
}

/// Runs an engine on those of some inputs that it takes.
pub(super) fn run(
    engine: &Engine,
    inputs: &[(String, Tensor)],
) -> Result<Vec<(String, Tensor)>, TrainError> {
    let takes = |name: &str| engine.inputs().iter().any(|port| port.name == name);
    let own = inputs.iter().filter(|(name, _)| takes(name));
    let own: Vec<(&str, Tensor)> = own.map(|(name, t)| (name.as_str(), t.clone())).collect();
    Ok(engine.run(&own)?)
}

/// A loss.
pub(super) fn scalar(tensor: &Tensor) -> f64 {
    let first = tensor.floats().and_then(|values| values.first());
    first.map_or(f64::NAN, |&x| f64::from(x))
}

/// What a language model itself takes of a batch.
///
/// # Errors
/// It takes something else than tokens, positions and a mask.
pub(super) fn tokens(engine: &Engine, batch: &Batch) -> Result<Vec<(String, Tensor)>, TrainError> {
    let shape = [batch.examples.len(), batch.len];
    let positions = || {
        (0..batch.examples.len())
            .flat_map(|_| 0..batch.len as i64)
            .collect()
    };
    let mut inputs = Vec::new();
    for port in engine.inputs() {
        let values = match port.name.as_str() {
            "input_ids" => batch.tokens.clone(),
            "attention_mask" => vec![1; batch.tokens.len()],
            "position_ids" => positions(),
            name if name.starts_with("train.") => continue,
            other => {
                let what = format!(
                    "the model takes {other:?} besides token ids; causal language models can be trained"
                );
                return Err(TrainError::Settings(what));
            }
        };
        inputs.push((port.name.clone(), Tensor::i64(&shape, values)));
    }
    Ok(inputs)
}
