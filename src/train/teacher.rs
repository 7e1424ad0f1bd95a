//! The original, whose predictions are the measure.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use super::TrainError;
use super::data::Batch;
use super::learner::tokens;
use super::loss;
use crate::exec::kernels::grad::log_softmax;
use crate::exec::{Engine, Tensor};

/// The original.
pub struct Teacher {
    engine: Engine,
    top: Option<usize>,
    /// Likeliest tokens and their log-probabilities, of examples that were run before.
    known: RefCell<HashMap<usize, Likeliest>>,
    /// All logits of batches to judge by, while they take no more than [`MOST_KEPT`]: such batches are
    /// the same at every judgement.
    judged: RefCell<HashMap<Vec<usize>, Tensor>>,
    kept: Cell<u64>,
    runs: Cell<u64>,
}

/// Bytes of logits of validation batches that stay in memory; beyond, the teacher runs again.
const MOST_KEPT: u64 = 256 << 20;

/// What a batch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// To train on.
    Train,
    /// To judge by: one of the validation examples.
    Judge,
}

#[derive(Clone)]
struct Likeliest {
    ids: Vec<i64>,
    log_probabilities: Vec<f32>,
}

impl Teacher {
    /// A teacher that gives all logits, or its `top` likeliest tokens; all where it has no more.
    pub fn new(engine: Engine, top: Option<usize>) -> Self {
        let vocabulary = engine.language_model().map_or(0, |model| model.vocabulary);
        Self {
            engine,
            top: top.filter(|&top| top < vocabulary),
            known: RefCell::default(),
            judged: RefCell::default(),
            kept: Cell::new(0),
            runs: Cell::new(0),
        }
    }

    /// It, ready to run.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Gives back the memory of logits to judge by.
    pub(super) fn forget(&self) {
        self.judged.borrow_mut().clear();
        self.kept.set(0);
    }

    /// How often it has run.
    pub fn runs(&self) -> u64 {
        self.runs.get()
    }

    /// How many of its likeliest tokens it gives of the examples of training; none for all logits.
    pub(super) fn top(&self) -> Option<usize> {
        self.top
    }

    /// All its logits on a batch, `[examples, len, vocabulary]`.
    ///
    /// # Errors
    /// It cannot be run.
    pub(super) fn logits(&self, batch: &Batch) -> Result<Tensor, TrainError> {
        let inputs = tokens(&self.engine, batch)?;
        let inputs: Vec<(&str, Tensor)> = inputs
            .iter()
            .map(|(name, t)| (name.as_str(), t.clone()))
            .collect();
        self.runs.set(self.runs.get() + 1);
        let first = self.engine.run(&inputs)?.into_iter().next();
        let lost = || TrainError::Settings("the teacher has no output".to_string());
        Ok(first.ok_or_else(lost)?.1)
    }

    /// All its logits on a batch of validation examples, of an earlier judgement if they were kept.
    fn logits_to_judge_by(&self, batch: &Batch) -> Result<Tensor, TrainError> {
        if let Some(known) = self.judged.borrow().get(&batch.examples) {
            return Ok(known.clone());
        }
        let logits = self.logits(batch)?;
        let bytes = logits.floats().map_or(0, |values| 4 * values.len() as u64);
        if self.kept.get() + bytes <= MOST_KEPT {
            self.kept.set(self.kept.get() + bytes);
            let mut judged = self.judged.borrow_mut();
            judged.insert(batch.examples.clone(), logits.clone());
        }
        Ok(logits)
    }

    /// What the divergence is from. Numbers of examples are those of the list that `use_of` says.
    pub(super) fn inputs(
        &self,
        batch: &Batch,
        use_of: Use,
    ) -> Result<Vec<(&'static str, Tensor)>, TrainError> {
        let top = match (self.top, use_of) {
            (Some(top), Use::Train) => top,
            (None, Use::Train) => return Ok(vec![(loss::TEACHER, self.logits(batch)?)]),
            (_, Use::Judge) => {
                return Ok(vec![(loss::TEACHER, self.logits_to_judge_by(batch)?)]);
            }
        };
        let known = batch
            .examples
            .iter()
            .all(|e| self.known.borrow().contains_key(e));
        if !known {
            self.learn(batch, top)?;
        }
        let (mut ids, mut values) = (Vec::new(), Vec::new());
        let known = self.known.borrow();
        for example in &batch.examples {
            let Some(likeliest) = known.get(example) else {
                continue;
            };
            let want = batch.len * top;
            ids.extend_from_slice(&likeliest.ids[..likeliest.ids.len().min(want)]);
            values.extend_from_slice(&likeliest.log_probabilities[..likeliest.ids.len().min(want)]);
            // Filling, which has no weight.
            let missing = want.saturating_sub(likeliest.ids.len());
            ids.extend(std::iter::repeat_n(0, missing));
            values.extend(std::iter::repeat_n(f32::NEG_INFINITY, missing));
        }
        let shape = [batch.examples.len(), batch.len, top];
        Ok(vec![
            (loss::TEACHER_IDS, Tensor::i64(&shape, ids)),
            (loss::TEACHER, Tensor::f32(&shape, values)),
        ])
    }

    fn learn(&self, batch: &Batch, top: usize) -> Result<(), TrainError> {
        let logits = self.logits(batch)?;
        let width = logits.width();
        let values = logits.floats().unwrap_or_default();
        let each = (batch.len * width).max(1);
        for (&example, values) in batch.examples.iter().zip(values.chunks(each)) {
            let mut likeliest = Likeliest {
                ids: Vec::with_capacity(batch.len * top),
                log_probabilities: Vec::with_capacity(batch.len * top),
            };
            for row in values.chunks(width.max(1)) {
                let mut row = row.to_vec();
                log_softmax(&mut row);
                let mut order: Vec<usize> = (0..row.len()).collect();
                let order_of = |&a: &usize, &b: &usize| row[b].total_cmp(&row[a]).then(a.cmp(&b));
                if top < order.len() {
                    order.select_nth_unstable_by(top, order_of);
                    order.truncate(top);
                }
                order.sort_by(order_of);
                likeliest.ids.extend(order.iter().map(|&i| i as i64));
                likeliest
                    .log_probabilities
                    .extend(order.iter().map(|&i| row[i]));
            }
            self.known.borrow_mut().insert(example, likeliest);
        }
        Ok(())
    }
}
