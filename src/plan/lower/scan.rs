//! From ops to macros: which ops one launch takes up.

mod attention;
mod hadamard;
mod linear;
mod moe;
mod slots;

use std::collections::{HashMap, HashSet};

use super::macros::{Elementwise, Epilogue, Macro, Norm, Part, Slot, SlotInfo};
use crate::ir::{Graph, Module, Native, Op, OpId, OpKind, Operand, ValueId, WeightId};
use crate::plan::PlanError;

/// A graph as macros.
pub(crate) struct Scanned {
    pub(crate) macros: Vec<Macro>,
    pub(crate) slots: Vec<SlotInfo>,
    /// Logits `[tokens, vocabulary]`.
    pub(crate) logits: Slot,
    pub(crate) vocabulary: u64,
    pub(crate) hidden: u64,
    /// What could not be fused: where, and why.
    pub(crate) notes: Vec<(String, String)>,
}

type Result<T> = std::result::Result<T, PlanError>;

/// Reads the module's first graph.
///
/// # Errors
/// An op that no kernel does, or in a place where none does it.
pub(crate) fn scan(module: &Module) -> Result<Scanned> {
    let not = |why: &str| Err(PlanError::NotLanguageModel(why.to_string()));
    let Some(graph) = module.graphs.first() else {
        return not("the module has no graph");
    };
    if !graph.walk().iter().any(|&id| {
        let kind = graph.op(id).map(|op| &op.kind);
        matches!(
            kind,
            Some(OpKind::Native(Native::Attention { cache: Some(_), .. }))
        )
    }) {
        return not(
            "it has no attention with a KV cache: plans are for causal language models; encoders run with `eval`",
        );
    }
    let mut scan = Scan::new(module, graph);
    scan.run()?;
    scan.finish()
}

struct Scan<'a> {
    module: &'a Module,
    graph: &'a Graph,
    makers: HashMap<ValueId, OpId>,
    users: HashMap<ValueId, Vec<OpId>>,
    outputs: HashSet<ValueId>,
    done: HashSet<OpId>,
    values: HashMap<ValueId, Slot>,
    norms: HashMap<ValueId, (ValueId, Norm)>,
    slots: Vec<SlotInfo>,
    macros: Vec<Macro>,
    notes: Vec<(String, String)>,
}

impl<'a> Scan<'a> {
    fn new(module: &'a Module, graph: &'a Graph) -> Self {
        let mut scan = Self {
            module,
            graph,
            makers: HashMap::new(),
            users: HashMap::new(),
            outputs: HashSet::new(),
            done: HashSet::new(),
            values: HashMap::new(),
            norms: HashMap::new(),
            slots: Vec::new(),
            macros: Vec::new(),
            notes: Vec::new(),
        };
        for &id in &graph.body.ops {
            let Some(op) = graph.op(id) else { continue };
            for value in op.results.iter().flatten() {
                scan.makers.insert(*value, id);
            }
            for input in &op.inputs {
                if let Operand::Value(v) = input {
                    scan.users.entry(*v).or_default().push(id);
                }
            }
        }
        for output in &graph.body.outputs {
            if let Operand::Value(v) = output {
                scan.outputs.insert(*v);
            }
        }
        scan
    }

    fn run(&mut self) -> Result<()> {
        for &id in &self.graph.body.ops {
            if self.done.contains(&id) {
                continue;
            }
            let Some(op) = self.graph.op(id) else {
                continue;
            };
            match &op.kind {
                OpKind::Linear(_) => self.linear(id, op)?,
                OpKind::Embedding(_) => self.embedding(id, op)?,
                OpKind::Moe(moe) => self.moe(id, op, moe)?,
                OpKind::Native(native) => self.native(op, native)?,
                OpKind::Onnx(onnx) => {
                    let op_type = format!("onnx.{}", onnx.op_type);
                    let problem = "has no kernel; `hlrc-opt inspect --graph` shows where it stands";
                    return Err(PlanError::unsupported(&op_type, &op.name, problem));
                }
                OpKind::Grad(grad) => {
                    let problem = "belongs to a graph of training, which is not planned; plan the \
                                   model that `train` writes";
                    return Err(PlanError::unsupported(&grad.name(), &op.name, problem));
                }
            }
            self.done.insert(id);
        }
        Ok(())
    }

    fn finish(self) -> Result<Scanned> {
        let not = |why: &str| PlanError::NotLanguageModel(why.to_string());
        let [Operand::Value(output)] = self.graph.body.outputs.as_slice() else {
            return Err(not("it has not one output, the logits"));
        };
        let logits = self.values.get(output).copied();
        let logits = logits.ok_or_else(|| not("its output is not made by a head"))?;
        let head = self.macros.iter().rev().find_map(|m| match m {
            Macro::Linear { outputs, y, .. } if *y == logits => Some(outputs),
            _ => None,
        });
        let Some(super::macros::Outputs::Rows(parts)) = head else {
            return Err(not("it has no head over the vocabulary"));
        };
        let hidden = self.macros.iter().find_map(|m| match m {
            Macro::Embed { y, .. } => self.slots.get(y.0).map(|s| s.width),
            _ => None,
        });
        Ok(Scanned {
            vocabulary: parts.iter().map(|p| p.rows.end - p.rows.start).sum(),
            hidden: hidden.ok_or_else(|| not("it has no table of token embeddings"))?,
            macros: self.macros,
            slots: self.slots,
            logits,
            notes: self.notes,
        })
    }

    fn width(&self, slot: Slot) -> u64 {
        self.slots.get(slot.0).map_or(0, |s| s.width)
    }

    fn refuse<T>(&self, op: &Op, problem: impl Into<String>) -> Result<T> {
        let name = match &op.kind {
            OpKind::Linear(_) => "linear",
            OpKind::Embedding(_) => "embedding",
            OpKind::Moe(_) => "moe",
            OpKind::Native(native) => native.name(),
            OpKind::Onnx(_) => "onnx",
            OpKind::Grad(_) => "grad",
        };
        let place = match op.name.is_empty() {
            false => op.name.clone(),
            true => match op.results.first().copied().flatten() {
                Some(v) => v.to_string(),
                None => String::new(),
            },
        };
        Err(PlanError::unsupported(name, &place, problem))
    }

    fn value(&self, op: &Op, index: usize) -> Result<ValueId> {
        match op.inputs.get(index) {
            Some(Operand::Value(v)) => Ok(*v),
            _ => self.refuse(op, format!("input {index} is not a value")),
        }
    }

    fn weight(&self, op: &Op, index: usize) -> Result<WeightId> {
        match op.inputs.get(index) {
            Some(Operand::Weight(w)) => Ok(*w),
            _ => self.refuse(op, format!("input {index} is not a constant")),
        }
    }

    fn result(&self, op: &Op) -> Result<ValueId> {
        match op.results.first().copied().flatten() {
            Some(v) => Ok(v),
            None => self.refuse(op, "it has no result"),
        }
    }

    /// The slot of a value; a norm that was put off is made now.
    fn operand(&mut self, op: &Op, value: ValueId) -> Result<Slot> {
        if let Some(slot) = self.values.get(&value) {
            return Ok(*slot);
        }
        if let Some((x, norm)) = self.norms.get(&value).cloned() {
            let x = self.operand(op, x)?;
            let width = self.width(x);
            let y = self.slot(&norm.name, width);
            self.macros.push(Macro::Norm {
                name: norm.name.clone(),
                norm,
                x,
                residual: None,
                y,
            });
            self.values.insert(value, y);
            return Ok(y);
        }
        self.refuse(
            op,
            format!("{value} is not made by an op that has a kernel"),
        )
    }

    /// The input of linears, with the norm that they do themselves.
    fn normed(&mut self, op: &Op, value: ValueId) -> Result<(Slot, Option<Norm>)> {
        if self.values.contains_key(&value) {
            return Ok((self.operand(op, value)?, None));
        }
        let Some((x, norm)) = self.norms.get(&value).cloned() else {
            return Ok((self.operand(op, value)?, None));
        };
        Ok((self.operand(op, x)?, Some(norm)))
    }

    /// The only user of a value that is no output.
    fn only_user(&self, value: ValueId) -> Option<(OpId, &'a Op)> {
        if self.outputs.contains(&value) {
            return None;
        }
        match self.users.get(&value)?.as_slice() {
            [one] => Some((*one, self.graph.op(*one)?)),
            _ => None,
        }
    }

    fn maker(&self, value: ValueId) -> Option<(OpId, &'a Op)> {
        let id = *self.makers.get(&value)?;
        Some((id, self.graph.op(id)?))
    }

    /// If `value` is only added to something that is there already: that, the add and its result.
    fn residual_of(&self, value: ValueId) -> Option<(OpId, Slot, ValueId)> {
        let (id, op) = self.only_user(value)?;
        if !matches!(op.kind, OpKind::Native(Native::Add)) {
            return None;
        }
        let other = op.inputs.iter().find_map(|i| match i {
            Operand::Value(v) if *v != value => Some(*v),
            _ => None,
        })?;
        let slot = *self.values.get(&other)?;
        Some((id, slot, op.results.first().copied().flatten()?))
    }

    fn native(&mut self, op: &'a Op, native: &Native) -> Result<()> {
        match native {
            Native::Positions => Ok(()),
            Native::RmsNorm {
                eps,
                unit_offset,
                slice,
            } => match slice {
                // Norms of heads belong to attention, which looks for them.
                Some(_) => Ok(()),
                None => self.norm(op, false, *eps, *unit_offset),
            },
            Native::LayerNorm { eps } => self.norm(op, true, *eps, false),
            Native::Rope { .. } | Native::Slice { .. } => Ok(()),
            Native::Attention { .. } => self.attention(op, native),
            Native::Add => self.elementwise(op, Elementwise::Add),
            Native::Mul => self.elementwise(op, Elementwise::Mul),
            Native::Scale { factor } if op.inputs.len() == 1 => {
                self.elementwise(op, Elementwise::Scale(*factor))
            }
            Native::Softcap { cap } => self.elementwise(op, Elementwise::Softcap(*cap)),
            Native::Activate { function } => self.elementwise(op, Elementwise::Activate(*function)),
            Native::Hadamard { .. } => self.hadamard(op, native),
            Native::Scale { .. } => self.refuse(op, "a factor that is a tensor has no kernel"),
            Native::FirstToken => self.refuse(op, "is of encoders, which plans are not made of"),
        }
    }

    fn norm(&mut self, op: &'a Op, layer: bool, eps: f64, unit_offset: bool) -> Result<()> {
        let (x, gain) = (self.value(op, 0)?, self.weight(op, 1)?);
        let beta = match op.inputs.get(2) {
            None | Some(Operand::None) => None,
            Some(_) => Some(self.weight(op, 2)?),
        };
        let name = match op.name.is_empty() {
            true => self
                .module
                .weight(gain)
                .map_or_else(String::new, |w| stem(&w.name)),
            false => op.name.clone(),
        };
        let norm = Norm {
            name,
            layer,
            gain,
            beta,
            unit_offset,
            eps,
        };
        let y = self.result(op)?;
        if let Some((add, residual, sum)) = self.residual_of(y) {
            let x = self.operand(op, x)?;
            let slot = self.slot(&norm.name, self.width(x));
            self.notes.push((
                norm.name.clone(),
                "a launch of its own: a norm between a linear and its residual needs whole rows"
                    .to_string(),
            ));
            self.macros.push(Macro::Norm {
                name: norm.name.clone(),
                norm,
                x,
                residual: Some(residual),
                y: slot,
            });
            self.values.insert(sum, slot);
            self.done.insert(add);
            return Ok(());
        }
        self.norms.insert(y, (x, norm));
        let users = self.users.get(&y).cloned().unwrap_or_default();
        let taken = |id: &OpId| {
            let kind = self.graph.op(*id).map(|op| &op.kind);
            matches!(kind, Some(OpKind::Linear(_) | OpKind::Moe(_)))
        };
        if !users.iter().all(taken) || self.outputs.contains(&y) {
            self.operand(op, y)?;
        }
        Ok(())
    }

    fn elementwise(&mut self, op: &'a Op, what: Elementwise) -> Result<()> {
        let a = self.value(op, 0)?;
        let a = self.operand(op, a)?;
        let b = match what {
            Elementwise::Add | Elementwise::Mul => {
                let b = self.value(op, 1)?;
                Some(self.operand(op, b)?)
            }
            _ => None,
        };
        let result = self.result(op)?;
        let name = match op.name.is_empty() {
            true => result.to_string().trim_start_matches('%').to_string(),
            false => op.name.clone(),
        };
        if b.is_some_and(|b| self.width(b) != self.width(a)) {
            return self.refuse(op, "operands of different widths have no kernel");
        }
        let y = self.slot(&name, self.width(a));
        self.notes.push((
            name.clone(),
            "a launch of its own: what makes its input has no epilogue for it, or others read that too".to_string(),
        ));
        self.macros.push(Macro::Elementwise {
            name,
            op: what,
            a,
            b,
            y,
        });
        self.values.insert(result, y);
        Ok(())
    }

    fn embedding(&mut self, id: OpId, op: &'a Op) -> Result<()> {
        let ids = self.value(op, 0)?;
        let positions = self.is_positions(ids);
        let named = |v: ValueId| self.graph.value(v).is_some_and(|v| v.name == "input_ids");
        let tokens = self.graph.body.inputs.contains(&ids) && named(ids);
        if !positions && !tokens {
            return self.refuse(op, "its rows are neither tokens nor positions");
        }
        let Some(matrix) = op.kind.matrix() else {
            return Ok(());
        };
        let table = Part {
            op: id,
            name: op.name.clone(),
            rows: 0..matrix.out_features,
        };
        let mut value = self.result(op)?;
        let mut scale = 1.0;
        if let Some((user, next)) = self.only_user(value)
            && let OpKind::Native(Native::Scale { factor }) = next.kind
            && next.inputs.len() == 1
        {
            scale = factor;
            self.done.insert(user);
            value = self.result(next)?;
        }
        let name = match op.name.is_empty() {
            true => "embedding".to_string(),
            false => op.name.clone(),
        };
        // A second table (positions) is added to what the first one made.
        let alone = |slot: Slot| {
            let mut of = self.values.iter().filter(|(_, s)| **s == slot);
            of.all(|(v, _)| self.only_user(*v).is_some())
        };
        if let Some((add, slot, sum)) = self.residual_of(value).filter(|(_, slot, _)| alone(*slot))
        {
            self.macros.push(Macro::Embed {
                name,
                table,
                positions,
                y: slot,
                add: true,
                scale,
            });
            self.done.insert(add);
            self.values.insert(sum, slot);
            return Ok(());
        }
        let y = self.slot(&name, matrix.in_features);
        self.macros.push(Macro::Embed {
            name,
            table,
            positions,
            y,
            add: false,
            scale,
        });
        self.values.insert(value, y);
        Ok(())
    }

    fn is_positions(&self, value: ValueId) -> bool {
        let made = self.maker(value).map(|(_, op)| &op.kind);
        let named = self
            .graph
            .value(value)
            .is_some_and(|v| v.name == "position_ids");
        matches!(made, Some(OpKind::Native(Native::Positions)))
            || (named && self.graph.body.inputs.contains(&value))
    }

    /// What the epilogue of a linear takes up behind `value`; the value that comes out.
    fn epilogue(&mut self, mut value: ValueId, activates: bool) -> (Epilogue, ValueId) {
        let mut epilogue = Epilogue::default();
        if let Some((id, op)) = self.only_user(value)
            && let Some(next) = op.results.first().copied().flatten()
        {
            match op.kind {
                OpKind::Native(Native::Activate { function }) if activates => {
                    epilogue.activation = Some(function);
                    self.done.insert(id);
                    value = next;
                }
                OpKind::Native(Native::Softcap { cap }) => {
                    epilogue.softcap = Some(cap);
                    self.done.insert(id);
                    value = next;
                }
                _ => {}
            }
        }
        if let Some((id, slot, sum)) = self.residual_of(value) {
            epilogue.residual = Some(slot);
            self.done.insert(id);
            value = sum;
        }
        (epilogue, value)
    }
}

/// A tensor's name without what every tensor's ends in.
pub(super) fn stem(name: &str) -> String {
    name.strip_suffix(".weight").unwrap_or(name).to_string()
}
