//! What a model needs in a device's memory beside its weights: KV caches and activations.
//!
//! Sizes follow from the graph alone. A runtime may do with less (activations in f16) or take more
//! (copies that it keeps); what is counted here is said with each figure.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::ir::shapes::Shapes;
use crate::ir::{
    Attr, Dim, Graph, Module, Native, Op, OpId, OpKind, Operand, Region, Role, ValueId,
};

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum KvFormat {
    /// 4 bytes each, as this program's executor keeps them.
    F32,
    /// 2 bytes each (f16 or bf16).
    #[default]
    F16,
    /// 8-bit codes, 32 of a head sharing an f16 scale: 34 bytes per 32.
    Q8,
    /// 4-bit codes, 32 of a head sharing an f16 scale: 18 bytes per 32.
    Q4,
}

impl KvFormat {
    /// Bytes of one head's vector.
    pub fn bytes(self, head_dim: u64) -> u64 {
        match self {
            KvFormat::F32 => head_dim.saturating_mul(4),
            KvFormat::F16 => head_dim.saturating_mul(2),
            KvFormat::Q8 => head_dim.div_ceil(32).saturating_mul(34),
            KvFormat::Q4 => head_dim.div_ceil(32).saturating_mul(18),
        }
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            KvFormat::F32 => "f32",
            KvFormat::F16 => "f16",
            KvFormat::Q8 => "q8",
            KvFormat::Q4 => "q4",
        }
    }
}

/// What a model is asked to hold at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Tokens of each sequence.
    pub context: u64,
    /// Sequences.
    pub sequences: u64,
    /// Tokens of a sequence that go through the model at once.
    pub chunk: u64,
    /// How keys and values are kept.
    pub kv: KvFormat,
}

/// Attention layers that keep the same keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CacheKind {
    /// Key and value heads.
    pub heads: u64,
    /// Width of a head.
    pub head_dim: u64,
    /// How many latest positions are seen, where not all are.
    pub window: Option<u64>,
}

impl CacheKind {
    /// Positions of a sequence that stand in the cache: a window's, and those of the chunk behind it.
    pub fn positions(&self, load: &Load) -> u64 {
        let seen = self
            .window
            .map_or(u64::MAX, |w| w.saturating_add(load.chunk));
        load.context.min(seen)
    }

    /// Bytes of one layer's keys and values, all sequences.
    pub fn bytes(&self, load: &Load) -> u64 {
        let each = load.kv.bytes(self.head_dim).saturating_mul(self.heads);
        each.saturating_mul(2)
            .saturating_mul(self.positions(load))
            .saturating_mul(load.sequences)
    }
}

/// Why it can't be told what a model needs.
#[derive(Debug, thiserror::Error)]
pub enum RunningError {
    /// An op whose memory is not known.
    #[error(
        "{op} `{name}`: not of the transformer set, so what it needs while it runs is not known"
    )]
    Unknown {
        /// The op.
        op: String,
        /// Its name.
        name: String,
    },
    /// There is no graph, or one without ops.
    #[error("the graph has no op that runs: its matrices stand by themselves")]
    NoGraph,
}

/// What a model needs beside its weights, for any load.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Running {
    /// Layers by what they cache.
    pub caches: BTreeMap<CacheKind, u64>,
    /// Most f32 values per token that live at once.
    pub values_per_token: u64,
    /// Width of the logits that a sequence's last token gets; 0 without a head or without caches.
    pub logits: u64,
    /// Longest context, where the model says.
    pub max_positions: Option<u64>,
}

impl Running {
    /// Reads it off the module's first graph; `shapes` are asked for ops outside of the transformer set.
    ///
    /// # Errors
    /// An op whose result has no size that is known to grow with the tokens alone.
    pub fn of(module: &Module, shapes: &Shapes) -> Result<Self, RunningError> {
        let graph = module.graphs.first().ok_or(RunningError::NoGraph)?;
        if graph.body.ops.is_empty() || graph.body.inputs.is_empty() {
            return Err(RunningError::NoGraph);
        }
        let mut running = Self {
            max_positions: module
                .meta
                .get("max_positions")
                .and_then(Attr::as_int)
                .and_then(|n| u64::try_from(n).ok()),
            ..Self::default()
        };
        for id in graph.walk() {
            let Some(op) = graph.op(id) else { continue };
            if let OpKind::Native(Native::Attention {
                kv_heads,
                head_dim,
                window,
                cache: Some(_),
                ..
            }) = op.kind
            {
                let kind = CacheKind {
                    heads: kv_heads,
                    head_dim,
                    window,
                };
                *running.caches.entry(kind).or_default() += 1;
            }
        }
        let causal = !running.caches.is_empty();
        let mut walk = Walk {
            graph,
            shapes,
            widths: HashMap::new(),
            causal,
            logits: 0,
        };
        running.values_per_token = walk.region(&graph.body, 1)?;
        running.logits = walk.logits;
        Ok(running)
    }

    /// Whether it keeps keys and values from token to token.
    pub fn is_causal(&self) -> bool {
        !self.caches.is_empty()
    }

    /// Bytes of all keys and values.
    pub fn cache_bytes(&self, load: &Load) -> u64 {
        let each = self.caches.iter();
        each.map(|(kind, layers)| kind.bytes(load).saturating_mul(*layers))
            .fold(0, u64::saturating_add)
    }

    /// Tokens that go through the model at once: a chunk of one sequence, or a token of each; without a
    /// cache, all there are.
    pub fn tokens_at_once(&self, load: &Load) -> u64 {
        match self.is_causal() {
            true => load.chunk.min(load.context).max(load.sequences),
            false => load.context.saturating_mul(load.sequences),
        }
    }

    /// Bytes of activations and logits, in f32. Attention is taken to keep no scores.
    pub fn workspace_bytes(&self, load: &Load) -> u64 {
        let values = self
            .values_per_token
            .saturating_mul(self.tokens_at_once(load));
        values
            .saturating_add(self.logits.saturating_mul(load.sequences))
            .saturating_mul(4)
    }
}

struct Walk<'a> {
    graph: &'a Graph,
    shapes: &'a Shapes,
    /// Values per token of what was made so far.
    widths: HashMap<ValueId, u64>,
    causal: bool,
    logits: u64,
}

impl Walk<'_> {
    /// Most values per token that live at once in a region whose inputs are so wide.
    fn region(&mut self, region: &Region, inputs: u64) -> Result<u64, RunningError> {
        for input in &region.inputs {
            self.widths.insert(*input, inputs);
        }
        let last = self.last_uses(region);
        let mut live: HashSet<ValueId> = region.inputs.iter().copied().collect();
        let mut held: u64 = live.iter().map(|v| self.width(*v)).sum();
        let mut most = held;
        for (at, id) in region.ops.iter().enumerate() {
            let Some(op) = self.graph.op(*id) else {
                continue;
            };
            let scratch = self.op(op)?;
            for result in op.results.iter().flatten() {
                if live.insert(*result) {
                    held = held.saturating_add(self.width(*result));
                }
            }
            most = most.max(held.saturating_add(scratch));
            for value in last.get(&at).into_iter().flatten() {
                if live.remove(value) {
                    held = held.saturating_sub(self.width(*value));
                }
            }
        }
        Ok(most)
    }

    fn width(&self, value: ValueId) -> u64 {
        self.widths.get(&value).copied().unwrap_or(0)
    }

    fn operand(&self, op: &Op, at: usize) -> u64 {
        match op.inputs.get(at) {
            Some(Operand::Value(value)) => self.width(*value),
            _ => 0,
        }
    }

    /// Values by the index of the op behind which nobody needs them.
    fn last_uses(&self, region: &Region) -> HashMap<usize, Vec<ValueId>> {
        let mut last: HashMap<ValueId, usize> = HashMap::new();
        for (at, id) in region.ops.iter().enumerate() {
            self.reads(*id, &mut |value| {
                last.insert(value, at);
            });
            let results = self.graph.op(*id).into_iter().flat_map(|op| &op.results);
            for result in results.flatten() {
                last.entry(*result).or_insert(at);
            }
        }
        for output in &region.outputs {
            if let Operand::Value(value) = output {
                last.remove(value);
            }
        }
        let mut by_op: HashMap<usize, Vec<ValueId>> = HashMap::new();
        for (value, at) in last {
            by_op.entry(at).or_default().push(value);
        }
        by_op
    }

    /// Values that an op reads, those of its regions included.
    fn reads(&self, id: OpId, seen: &mut impl FnMut(ValueId)) {
        let Some(op) = self.graph.op(id) else { return };
        for input in &op.inputs {
            if let Operand::Value(value) = input {
                seen(*value);
            }
        }
        for region in op.kind.regions() {
            for inner in &region.ops {
                // Regions of experts have no regions of their own: the depth is bounded by the verifier.
                let inputs = self.graph.op(*inner).into_iter().flat_map(|op| &op.inputs);
                for input in inputs {
                    if let Operand::Value(value) = input {
                        seen(*value);
                    }
                }
            }
        }
    }

    /// Widths of what an op makes; returns the values per token that it needs for itself.
    fn op(&mut self, op: &Op) -> Result<u64, RunningError> {
        let input = self.operand(op, 0);
        let (width, scratch) = match &op.kind {
            OpKind::Linear(linear) if linear.role == Role::Head && self.causal => {
                self.logits = self.logits.max(linear.matrix.out_features);
                (0, input)
            }
            // The input once more: in the coordinates of rotated codes.
            OpKind::Linear(linear) => (linear.matrix.out_features, linear.matrix.in_features),
            OpKind::Embedding(embedding) => (embedding.matrix.in_features, 0),
            OpKind::Moe(moe) => {
                // Tokens go to their experts as copies, and what comes back is summed.
                let routed = u64::from(moe.top_k).min(moe.experts.len() as u64);
                let mut inside = 0;
                for region in &moe.experts {
                    inside = inside.max(self.region(region, input)?);
                }
                (input, inside.saturating_mul(routed))
            }
            OpKind::Native(native) => (self.native(native, input), 0),
            OpKind::Grad(grad) => {
                return Err(RunningError::Unknown {
                    op: grad.name(),
                    name: op.name.clone(),
                });
            }
            OpKind::Onnx(node) => {
                return self.foreign(op).ok_or_else(|| RunningError::Unknown {
                    op: format!("onnx.{}", node.op_type),
                    name: op.name.clone(),
                });
            }
        };
        for result in op.results.iter().flatten() {
            self.widths.insert(*result, width);
        }
        Ok(scratch)
    }

    /// Widths of what another op makes: masks, positions and the like, sized by sequences and tokens.
    fn foreign(&mut self, op: &Op) -> Option<u64> {
        let first = *self.graph.body.inputs.first()?;
        let tokens = self.shapes.dims(0, first)?;
        for result in op.results.iter().flatten() {
            let mut symbols: Vec<&Dim> = tokens.iter().collect();
            let mut width = 1u64;
            for dim in self.shapes.dims(0, *result)? {
                match dim {
                    Dim::Known(size) => {
                        width = width.saturating_mul(u64::try_from(*size).ok()?);
                    }
                    // Each of the tokens' own sizes once: nothing that grows with their square.
                    other => {
                        let at = symbols.iter().position(|known| *known == other)?;
                        symbols.swap_remove(at);
                    }
                }
            }
            self.widths.insert(*result, width);
        }
        Some(0)
    }

    fn native(&self, native: &Native, input: u64) -> u64 {
        match native {
            Native::Slice { width, .. } => *width,
            Native::Positions => 1,
            // Of a first token's vector there is one per sequence: no more than one per token.
            _ => input,
        }
    }
}
