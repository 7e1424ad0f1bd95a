//! What becomes of a graph's ops and weights, gathered before the patch is made.

use std::collections::{BTreeMap, HashSet};

use super::uses::Uses;
use super::{DTypeOption, Options};
use crate::ir::patch::Patch;
use crate::ir::{
    Attr, Attrs, Encoding, Gain, Module, Native, Op, OpId, OpKind, OpRef, Operand, Rotated,
    Storage, Term, Turn, Type, ValueId, Weight, WeightId, WeightView,
};
use crate::pass::{Remark, RemarkKind};
use crate::passes::find_linears::SPELLING;
use crate::weights::DType;

/// How an op's matrix is turned.
#[derive(Clone, Default)]
pub(super) struct Fold {
    /// The side that inputs come to.
    pub(super) input: Option<Turn>,
    /// The side of the outputs; of an embedding, that of its vectors.
    pub(super) output: Option<Turn>,
    /// The gain of the norm in front, and whether it is stored less 1.
    pub(super) gain: Option<(WeightId, bool)>,
}

/// A rotation that stands as an op.
pub(super) struct Explicit {
    pub(super) turn: Turn,
    pub(super) inverse: bool,
    pub(super) from: ValueId,
    pub(super) to: ValueId,
    pub(super) name: String,
}

#[derive(Default)]
struct Edit {
    fold: Fold,
    /// The norm's gain becomes 1.
    ones: bool,
    inputs: Vec<(usize, ValueId)>,
    results: Vec<(ValueId, ValueId)>,
    before: Vec<Explicit>,
    after: Vec<Explicit>,
}

/// Edits of one graph.
pub(super) struct Edits<'a> {
    pub(super) uses: Uses<'a>,
    pub(super) options: &'a Options,
    pub(super) graph: usize,
    /// Values that edits make, with their types; ids are those of the patched graph.
    values: Vec<Option<Type>>,
    edits: BTreeMap<OpId, Edit>,
}

impl<'a> Edits<'a> {
    pub(super) fn new(module: &'a Module, graph: usize, options: &'a Options) -> Self {
        Self {
            uses: Uses::new(module, &module.graphs[graph]),
            options,
            graph,
            values: Vec::new(),
            edits: BTreeMap::new(),
        }
    }

    /// How the op's matrix will be turned.
    pub(super) fn fold(&mut self, op: OpId) -> &mut Fold {
        &mut self.edits.entry(op).or_default().fold
    }

    /// Whether the side of the inputs is turned already.
    pub(super) fn is_turned(&self, op: OpId) -> bool {
        let fold = self.edits.get(&op).map(|edit| &edit.fold);
        fold.is_some_and(|fold| fold.input.is_some())
    }

    /// The norm's gain becomes 1.
    pub(super) fn take_gain(&mut self, norm: OpId) {
        self.edits.entry(norm).or_default().ones = true;
    }

    /// A value of the type of another.
    pub(super) fn value_like(&mut self, other: ValueId) -> ValueId {
        let ty = self.uses.graph.value(other).and_then(|v| v.ty.clone());
        self.values.push(ty);
        ValueId::new(self.uses.graph.values.len() + self.values.len() - 1)
    }

    /// Turns what an op makes.
    pub(super) fn turn_result(&mut self, op: OpId, result: ValueId, turn: Turn) {
        let made = self.value_like(result);
        let name = format!("{}.rotation", self.uses.name(op));
        let edit = self.edits.entry(op).or_default();
        edit.results.push((result, made));
        edit.after.push(Explicit {
            turn,
            inverse: false,
            from: made,
            to: result,
            name,
        });
    }

    /// Turns what an op reads back.
    pub(super) fn turn_input_back(&mut self, op: OpId, index: usize, input: ValueId, turn: Turn) {
        let made = self.value_like(input);
        let name = format!("{}.rotation", self.uses.name(op));
        let edit = self.edits.entry(op).or_default();
        edit.inputs.push((index, made));
        edit.before.push(Explicit {
            turn,
            inverse: true,
            from: input,
            to: made,
            name,
        });
    }

    /// Turns a value for some of its readers, right behind its maker.
    pub(super) fn turn_for(&mut self, maker: OpId, from: ValueId, readers: &[OpId], turn: Turn) {
        let to = self.value_like(from);
        let name = readers
            .first()
            .map_or(String::new(), |&op| self.uses.name(op));
        self.edits.entry(maker).or_default().after.push(Explicit {
            turn,
            inverse: false,
            from,
            to,
            name: format!("{name}.rotation"),
        });
        for &reader in readers {
            let edit = self.edits.entry(reader).or_default();
            edit.inputs.push((0, to));
            edit.fold.input = Some(turn);
        }
    }

    /// Puts all edits into the patch; how many ops change.
    pub(super) fn finish(
        self,
        patch: &mut Patch,
        names: &mut HashSet<String>,
        remarks: &mut Vec<Remark>,
    ) -> usize {
        let Self {
            uses,
            options,
            graph,
            values,
            edits,
        } = self;
        for ty in values {
            patch.add_value(graph, "", ty);
        }
        let mut maker = Maker {
            uses: &uses,
            options,
            patch,
            names,
            before: 0,
            after: 0,
            matrices: 0,
        };
        let count = edits.len();
        for (id, edit) in edits {
            let Some(old) = uses.graph.op(id) else {
                continue;
            };
            let mut op = old.clone();
            for (index, value) in edit.inputs {
                if let Some(input) = op.inputs.get_mut(index) {
                    *input = Operand::Value(value);
                }
            }
            for (from, to) in edit.results {
                op.results
                    .iter_mut()
                    .filter(|r| **r == Some(from))
                    .for_each(|r| *r = Some(to));
            }
            if edit.ones {
                maker.ones(&mut op);
            }
            maker.matrix(id, &mut op, &edit.fold);
            let mut ops: Vec<Op> = edit.before.into_iter().map(hadamard).collect();
            ops.push(op);
            ops.extend(edit.after.into_iter().map(hadamard));
            maker.patch.replace(OpRef { graph, op: id }, ops);
        }
        let Maker {
            before,
            after,
            matrices,
            ..
        } = maker;
        if matrices > 0 {
            let text = format!(
                "matrices turned: {matrices}; {before} bytes before, {after} where nothing codes them"
            );
            let name = &uses.graph.body.name;
            remarks.push(Remark::new(RemarkKind::Passed, name, text));
        }
        count
    }
}

fn hadamard(explicit: Explicit) -> Op {
    let Explicit {
        turn,
        inverse,
        from,
        to,
        name,
    } = explicit;
    let native = Native::Hadamard {
        block: turn.block,
        seed: turn.seed,
        inverse,
    };
    Op {
        name,
        ..Op::new(OpKind::Native(native), vec![Operand::Value(from)], to)
    }
}

/// Makes new weights.
struct Maker<'m, 'a> {
    uses: &'m Uses<'a>,
    options: &'m Options,
    patch: &'m mut Patch,
    names: &'m mut HashSet<String>,
    before: u64,
    after: u64,
    matrices: usize,
}

impl Maker<'_, '_> {
    /// A weight in the place of `old`, by its name where nothing else has it.
    fn weight(&mut self, old: WeightId, own: bool, wanted: &str, new: Weight) -> WeightId {
        let mut name = wanted.to_string();
        if !own {
            let mut number = 1;
            while !self.names.insert(name.clone()) {
                number += 1;
                name = format!("{wanted}.{number}");
            }
        }
        self.patch.drop_weight(old);
        self.patch.add_weight(Weight { name, ..new })
    }

    /// The op's gain becomes ones of the same type.
    fn ones(&mut self, op: &mut Op) {
        let OpKind::Native(Native::RmsNorm { unit_offset, .. }) = &mut op.kind else {
            return;
        };
        *unit_offset = false;
        let Some(Operand::Weight(gain)) = op.inputs.get(1).copied() else {
            return;
        };
        let Some(weight) = self.uses.module.weight(gain) else {
            return;
        };
        let one: &[u8] = match weight.dtype {
            DType::F16 => &[0x00, 0x3c],
            DType::BF16 => &[0x80, 0x3f],
            _ => &[0x00, 0x00, 0x80, 0x3f],
        };
        let dtype = DTypeOption::Source.of(weight.dtype);
        let count = weight.elements().unwrap_or(0);
        let new = Weight {
            name: String::new(),
            dtype,
            dims: weight.dims.clone(),
            storage: Storage::Inline(one.repeat(usize::try_from(count).unwrap_or(0))),
            sha256: None,
            meta: Attrs::new(),
        };
        let own = self.uses.is_own(gain);
        let name = match own {
            true => weight.name.clone(),
            false => format!("{}.ones", weight.name),
        };
        let new = self.weight(gain, own, &name, new);
        if let Some(input) = op.inputs.get_mut(1) {
            *input = Operand::Weight(new);
        }
    }

    /// The op's matrix and bias in their new coordinates.
    fn matrix(&mut self, id: OpId, op: &mut Op, fold: &Fold) {
        if fold.input.is_none() && fold.output.is_none() && fold.gain.is_none() {
            return;
        }
        let view = op.kind.matrix().and_then(|m| m.dense_view()).cloned();
        let Some(view) = view else { return };
        let name = self.uses.name(id);
        let Some(new) = self.turned(&view, fold, matches!(op.kind, OpKind::Embedding(_)), &name)
        else {
            return;
        };
        let term = Term::Dense(WeightView {
            weight: new,
            index: None,
            transposed: view.transposed,
        });
        if let Some(matrix) = op.kind.matrix_mut() {
            matrix.terms = vec![term];
        }
        if let (OpKind::Linear(linear), Some(turn)) = (&mut op.kind, fold.output) {
            linear.bias = linear.bias.map(|bias| self.bias(bias, turn));
        }
        // No one node of the source any more, but of its element type.
        if let Some(Attr::Dict(spelled)) = op.meta.get(SPELLING) {
            let mut kept = Attrs::new();
            for key in ["dtype", "rank"] {
                if let Some(value) = spelled.get(key) {
                    kept.set(key, value.clone());
                }
            }
            op.meta.set(SPELLING, Attr::Dict(kept));
        }
    }

    fn turned(
        &mut self,
        view: &WeightView,
        fold: &Fold,
        embedding: bool,
        name: &str,
    ) -> Option<WeightId> {
        let module = self.uses.module;
        let weight = module.weight(view.weight)?;
        let (dims, part) = piece(weight, view.index)?;
        let mut parts = vec![part];
        // Vectors of an embedding are its rows: what turns them is on the side of its columns.
        let (mut rows, mut columns) = match embedding {
            true => (None, fold.output),
            false => (fold.output, fold.input),
        };
        if view.transposed {
            (rows, columns) = (columns, rows);
        }
        let gain = fold.gain.and_then(|(id, unit_offset)| {
            let gain = module.weight(id)?;
            parts.push(gain.storage.clone());
            Some(Gain {
                dtype: gain.dtype,
                along_rows: view.transposed,
                unit_offset,
            })
        });
        let dtype = self.options.dtype.of(weight.dtype);
        let new = Weight {
            name: String::new(),
            dtype,
            dims,
            storage: Storage::Rotated(Box::new(Rotated {
                parts,
                dtype: weight.dtype,
                rows,
                columns,
                gain,
            })),
            sha256: None,
            meta: Attrs::new(),
        };
        self.matrices += 1;
        let elements = new.elements().unwrap_or(0);
        self.before += weight.dtype.bytes_for(elements).unwrap_or(0);
        self.after += new.bytes();
        let own = view.index.is_none();
        let wanted = match own {
            true => weight.name.clone(),
            false => format!("{name}.weight"),
        };
        Some(self.weight(view.weight, own, &wanted, new))
    }

    fn bias(&mut self, id: WeightId, turn: Turn) -> WeightId {
        let Some(weight) = self.uses.module.weight(id) else {
            return id;
        };
        let new = Weight {
            name: String::new(),
            dtype: self.options.dtype.of(weight.dtype),
            dims: weight.dims.clone(),
            storage: Storage::Rotated(Box::new(Rotated {
                parts: vec![weight.storage.clone()],
                dtype: weight.dtype,
                rows: Some(turn),
                columns: None,
                gain: None,
            })),
            sha256: None,
            meta: Attrs::new(),
        };
        let own = self.uses.is_own(id);
        let wanted = match own {
            true => weight.name.clone(),
            false => format!("{}.rotated", weight.name),
        };
        self.weight(id, own, &wanted, new)
    }
}

/// Dimensions and bytes of a matrix, or of one of a stack.
fn piece(weight: &Weight, index: Option<u64>) -> Option<(Vec<u64>, Storage)> {
    let Some(index) = index else {
        return Some((weight.dims.clone(), weight.storage.clone()));
    };
    let dims = weight.dims.get(1..)?.to_vec();
    let elements = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d))?;
    let size = weight.dtype.bytes_for(elements)?;
    match &weight.storage {
        Storage::File {
            path,
            offset,
            encoding: Encoding::Raw,
            ..
        } => {
            let skip = index.checked_mul(size)?;
            let storage = Storage::File {
                path: path.clone(),
                offset: offset.checked_add(skip)?,
                len: size,
                encoding: Encoding::Raw,
            };
            Some((dims, storage))
        }
        _ => None,
    }
}
