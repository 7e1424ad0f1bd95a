//! Where a family's tensors come from: a checkpoint, or the configuration alone.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::super::shown;
use crate::ir::{Attrs, Encoding, Storage, Weight, WeightId};
use crate::weights::{Checkpoint, DType};

/// Problems that are kept; a wrong configuration makes one per tensor.
const MAX_PROBLEMS: usize = 1000;

/// Tensors by name, as weights of the module to be.
pub(super) struct Tensors {
    /// Every weight, in the order of the checkpoint.
    pub(super) weights: Vec<Weight>,
    /// What is wrong with tensors that were asked for.
    pub(super) problems: Vec<String>,
    /// A note on layers that the configuration leaves out.
    pub(super) surplus: Option<String>,
    ids: HashMap<String, WeightId>,
    used: Vec<bool>,
    /// Type of tensors that are made as they are asked for; `None` where a checkpoint has them all.
    implied: Option<DType>,
}

impl Tensors {
    /// The tensors of a checkpoint.
    pub(super) fn of(checkpoint: &Checkpoint) -> Self {
        let mut tensors = Self::implied(DType::F32);
        tensors.implied = None;
        for shard in &checkpoint.shards {
            let path: Arc<str> = Arc::from(shard.name.as_str());
            for info in &shard.header.tensors {
                tensors.add(Weight {
                    name: info.name.clone(),
                    dtype: info.dtype,
                    dims: info.shape.clone(),
                    storage: Storage::File {
                        path: Arc::clone(&path),
                        offset: info.offset,
                        len: info.bytes,
                        encoding: Encoding::Raw,
                    },
                    sha256: None,
                    meta: Attrs::new(),
                });
            }
        }
        tensors
    }

    /// Tensors of this type that come to be by being asked for, without data.
    pub(super) fn implied(dtype: DType) -> Self {
        Self {
            weights: Vec::new(),
            problems: Vec::new(),
            surplus: None,
            ids: HashMap::new(),
            used: Vec::new(),
            implied: Some(dtype),
        }
    }

    fn add(&mut self, weight: Weight) -> WeightId {
        let id = WeightId::new(self.weights.len());
        self.ids.insert(weight.name.clone(), id);
        self.weights.push(weight);
        self.used.push(false);
        id
    }

    /// Whether there is no checkpoint.
    pub(super) fn is_implied(&self) -> bool {
        self.implied.is_some()
    }

    /// Whether the checkpoint has the tensor; `implied` is the answer where there is none.
    pub(super) fn has(&self, name: &str, implied: bool) -> bool {
        if self.is_implied() {
            implied
        } else {
            self.ids.contains_key(name)
        }
    }

    /// Dimensions of a tensor; `None` where the checkpoint lacks it, or there is none.
    pub(super) fn dims(&self, name: &str) -> Option<&[u64]> {
        let id = self.ids.get(name)?;
        self.weights.get(id.index()).map(|w| w.dims.as_slice())
    }

    /// Whether the checkpoint has a tensor of floats of this name and shape.
    pub(super) fn is_float(&self, name: &str, dims: &[u64]) -> bool {
        let weight = self
            .ids
            .get(name)
            .and_then(|id| self.weights.get(id.index()));
        weight.is_some_and(|w| w.dims == dims && w.dtype.is_float())
    }

    /// The tensor called `name`, checked against the shape that the configuration gives it.
    ///
    /// A problem is noted and gives an id that no module has: with problems, no module is made.
    pub(super) fn weight(&mut self, name: &str, dims: &[u64]) -> WeightId {
        let none = WeightId::new(usize::MAX);
        let known = self.ids.get(name).copied();
        let Some((id, weight)) = known.and_then(|id| Some((id, self.weights.get(id.index())?)))
        else {
            if let Some(dtype) = self.implied {
                return self.make(name, dtype, dims);
            }
            self.problem(format!("{name} is missing, config.json implies {dims:?}"));
            return none;
        };
        if weight.dims != dims {
            let have = &weight.dims;
            let text = format!("{name} is {have:?}, config.json implies {dims:?}");
            self.problem(text);
            return none;
        }
        if !weight.dtype.is_float() {
            let text = format!("{name} is {}, expected floating point", weight.dtype);
            self.problem(text);
            return none;
        }
        if let Some(used) = self.used.get_mut(id.index()) {
            *used = true;
        }
        id
    }

    fn make(&mut self, name: &str, dtype: DType, dims: &[u64]) -> WeightId {
        let id = self.add(Weight {
            name: name.to_string(),
            dtype,
            dims: dims.to_vec(),
            storage: Storage::Absent,
            sha256: None,
            meta: Attrs::new(),
        });
        self.mark(id);
        id
    }

    /// The first of `names` that the checkpoint has, or else the first, which is then a problem.
    pub(super) fn first_of<'n>(&self, names: &[&'n str]) -> &'n str {
        let found = names.iter().find(|name| self.ids.contains_key(**name));
        found.or(names.first()).copied().unwrap_or_default()
    }

    /// Notes what is wrong with a tensor, or with a number of them.
    pub(super) fn problem(&mut self, text: String) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(text);
        }
    }

    /// Says that a weight is used by the graph.
    pub(super) fn mark(&mut self, id: WeightId) {
        if let Some(used) = self.used.get_mut(id.index()) {
            *used = true;
        }
    }

    /// How many different numbers follow `prefix` in names.
    ///
    /// Not the greatest of them: one tensor of layer 10^9 doesn't make 10^9 layers.
    pub(super) fn numbered(&self, prefix: &str) -> u64 {
        let number = |name: &String| -> Option<u64> {
            let rest = name.strip_prefix(prefix)?;
            rest.split('.').next()?.parse().ok()
        };
        let numbers: HashSet<u64> = self.ids.keys().filter_map(number).collect();
        numbers.len() as u64
    }

    /// The same tensors as if none had been asked for.
    pub(super) fn unused_again(mut self) -> Self {
        self.used.fill(false);
        self.problems.clear();
        self
    }

    /// Weights that the graph doesn't use, by name with numbers as `*`, and how many each stands for.
    pub(super) fn unused(&self) -> Vec<(String, usize)> {
        let mut patterns: BTreeMap<String, usize> = BTreeMap::new();
        for (weight, used) in self.weights.iter().zip(&self.used) {
            if !used {
                *patterns.entry(pattern(&weight.name)).or_insert(0) += 1;
            }
        }
        patterns.into_iter().collect()
    }
}

/// A name with its numbers replaced by `*`.
fn pattern(name: &str) -> String {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let parts = name
        .split('.')
        .map(|part| if number(part) { "*" } else { part });
    shown(&parts.collect::<Vec<_>>().join("."))
}
