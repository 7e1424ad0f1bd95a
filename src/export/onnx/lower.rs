//! Linears and embeddings → ONNX nodes, in a copy of the module.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};

use super::recipe::Recipe;
use super::{ExportError, Options, functions, opset, prune, restore};
use crate::ir::shapes::{Shapes, Trust, infer_with};
use crate::ir::{
    Attr, Attrs, Graph, Module, OnnxOp, Op, OpId, OpKind, OpRef, Operand, Region, Storage, ValueId,
    Weight, WeightId,
};
use crate::weights::DType;

/// A module of ONNX ops only, and how to make its new tensors.
pub(super) struct Lowered {
    /// The module to write.
    pub(super) module: Module,
    /// By weight name.
    pub(super) recipes: HashMap<String, Recipe>,
    /// What the user ought to know.
    pub(super) notes: Vec<String>,
    /// Was anything rewritten? If not, the module is written as it came.
    pub(super) changed: bool,
}

/// State of lowering one graph.
pub(super) struct Lowerer<'a> {
    pub(super) source: &'a Module,
    pub(super) out: Module,
    pub(super) graph: Graph,
    pub(super) options: Options,
    names: HashSet<String>,
    /// Regions by op: tensors aren't shared between them.
    regions: HashMap<OpId, usize>,
    /// Tensors by what they're made of, so that tied matrices share them.
    made: HashMap<(String, String), WeightId>,
    pub(super) recipes: HashMap<String, Recipe>,
    pub(super) notes: Vec<String>,
    /// Values that several ops need: masks, angles.
    pub(super) shared: HashMap<String, Vec<Operand>>,
    /// Opset that the forms used so far need.
    pub(super) opset: i64,
    /// Graphs that use ONNX Runtime's own ops.
    contrib: Vec<usize>,
    /// Number of the graph at hand.
    index: usize,
    /// Shapes of the source's values; rotations alone need them.
    widths: OnceCell<Shapes>,
}

/// The op being lowered.
pub(super) struct Site {
    /// In the source.
    pub(super) at: OpRef,
    /// Name for nodes and errors.
    pub(super) name: String,
    /// Element type of activations.
    pub(super) dtype: DType,
    /// The matrix's text, equal for ops that share it.
    pub(super) key: String,
    /// Nodes made, in order.
    pub(super) nodes: Vec<Op>,
    meta: Attrs,
    /// Axes of the activation, where the file does not say how many.
    pub(super) rank: Option<usize>,
}

/// Lowers every linear and embedding, those of model-local functions too.
///
/// # Errors
/// A term without a form; ops that an opset upgrade doesn't cover.
pub(super) fn lower(module: &Module, options: Options) -> Result<Lowered, ExportError> {
    let graphs = module.graphs.iter().enumerate();
    let raised = graphs.filter(|(_, graph)| {
        let ops = graph.walk();
        let mut ops = ops.iter().filter_map(|&id| graph.op(id));
        ops.any(is_raised)
    });
    let raised: Vec<usize> = raised.map(|(index, _)| index).collect();
    let out = module.clone();
    if raised.is_empty() {
        return Ok(Lowered {
            module: out,
            recipes: HashMap::new(),
            notes: Vec::new(),
            changed: false,
        });
    }
    let mut lowerer = Lowerer {
        source: module,
        out,
        graph: Graph::default(),
        options,
        names: names_of(module),
        regions: HashMap::new(),
        made: HashMap::new(),
        recipes: HashMap::new(),
        notes: Vec::new(),
        shared: HashMap::new(),
        opset: 0,
        contrib: Vec::new(),
        index: 0,
        widths: OnceCell::new(),
    };
    for &index in &raised {
        lowerer.graph(index)?;
    }
    lowerer.finish(&raised)
}

fn is_raised(op: &Op) -> bool {
    !matches!(op.kind, OpKind::Onnx(_))
}

/// Names that nodes and tensors already have; ONNX has one space for both.
fn names_of(module: &Module) -> HashSet<String> {
    let values = module.graphs.iter().flat_map(|graph| &graph.values);
    let values = values.map(|value| value.name.clone());
    values
        .chain(module.weights.iter().map(|weight| weight.name.clone()))
        .collect()
}

/// An op of the lowered graph.
pub(super) enum Item {
    /// One that was made.
    New(Op),
    /// One of the source, which has been or will be lowered itself.
    Old(OpId),
}

fn place(region: &mut Region, replaced: &HashMap<OpId, Vec<OpId>>) {
    let mut waiting: Vec<OpId> = std::mem::take(&mut region.ops);
    waiting.reverse();
    while let Some(id) = waiting.pop() {
        match replaced.get(&id) {
            Some(ids) => waiting.extend(ids.iter().rev()),
            None => region.ops.push(id),
        }
    }
}

impl Lowerer<'_> {
    /// Lowers one graph.
    fn graph(&mut self, index: usize) -> Result<(), ExportError> {
        let Some(source) = self.source.graphs.get(index) else {
            return Ok(());
        };
        self.index = index;
        self.graph = source.clone();
        self.regions = prune::regions_of(source);
        // Neither tensors nor values are shared between graphs.
        self.made.clear();
        self.shared.clear();
        if index == 0 {
            self.complete();
            self.declare_cache()?;
        }
        let mut replaced: HashMap<OpId, Vec<OpId>> = HashMap::new();
        for id in source.walk() {
            let Some(op) = source.op(id).filter(|op| is_raised(op)) else {
                continue;
            };
            let items = self.op(
                OpRef {
                    graph: index,
                    op: id,
                },
                op,
            )?;
            let place = |item| match item {
                Item::New(node) => self.graph.add_op(node),
                Item::Old(id) => id,
            };
            replaced.insert(id, items.into_iter().map(place).collect());
        }
        place(&mut self.graph.body, &replaced);
        for op in &mut self.graph.ops {
            op.kind
                .regions_mut()
                .into_iter()
                .for_each(|region| place(region, &replaced));
        }
        if let Some(slot) = self.out.graphs.get_mut(index) {
            *slot = std::mem::take(&mut self.graph);
        }
        Ok(())
    }

    fn finish(mut self, raised: &[usize]) -> Result<Lowered, ExportError> {
        for weight in &mut self.out.weights {
            // Everything that moved beside the source moves beside the output.
            if weight.meta.remove("external_data").is_some() {
                weight.meta.remove("data_location");
                weight.meta.remove(crate::onnx::mapping::LAYOUT);
            }
        }
        if raised.contains(&0) {
            prune::prune(&mut self.out);
        }
        opset::require(&mut self.out, self.opset)?;
        for index in 1..self.out.graphs.len() {
            functions::tensors_as_nodes(&mut self.out, index);
        }
        if !self.contrib.is_empty() {
            opset::import(&mut self.out.meta, "com.microsoft", 1);
        }
        for index in self.contrib.into_iter().filter(|index| *index > 0) {
            if let Some(graph) = self.out.graphs.get_mut(index) {
                opset::import(&mut graph.body.meta, "com.microsoft", 1);
            }
        }
        self.notes.dedup();
        Ok(Lowered {
            module: self.out,
            recipes: self.recipes,
            notes: self.notes,
            changed: true,
        })
    }

    fn op(&mut self, at: OpRef, op: &Op) -> Result<Vec<Item>, ExportError> {
        let mut meta = op.meta.clone();
        let spelling = match meta.remove(restore::SPELLING) {
            Some(Attr::Dict(dict)) => Some(dict),
            _ => None,
        };
        let result = op.results.first().copied().flatten();
        let result_name = result
            .and_then(|id| self.graph.value(id))
            .map(|value| value.name.clone());
        let name = if op.name.is_empty() {
            result_name.unwrap_or_default()
        } else {
            op.name.clone()
        };
        let stated = spelling
            .as_ref()
            .and_then(|dict| dict.get("dtype"))
            .and_then(Attr::as_str);
        let dtype = stated.and_then(|name| name.parse().ok());
        let rank = spelling
            .as_ref()
            .and_then(|dict| dict.get("rank")?.as_int());
        // Modules that aren't from ONNX compute in f32, whatever is stored.
        let typed = op
            .results
            .iter()
            .flatten()
            .find_map(|&id| self.value_dtype(id));
        let dtype = dtype.or(typed).unwrap_or(DType::F32);
        let region = self.regions.get(&at.op).copied().unwrap_or(0);
        let terms = op.kind.matrix().map(|matrix| &matrix.terms);
        let key = format!("{region} {terms:?}");
        let mut site = Site {
            at,
            name,
            dtype,
            key,
            nodes: Vec::new(),
            meta: Attrs::new(),
            rank: rank.and_then(|rank| usize::try_from(rank).ok()),
        };
        if let Some(spelling) = &spelling
            && restore::restore(self, &mut site, op, spelling, &meta)
        {
            return Ok(site.nodes.into_iter().map(Item::New).collect());
        }
        meta.remove(crate::onnx::mapping::LAYOUT);
        site.meta = meta;
        let last = match &op.kind {
            OpKind::Linear(linear) => self.linear(&mut site, op, linear)?,
            OpKind::Embedding(embedding) => self.embedding(&mut site, op, embedding)?,
            OpKind::Native(native) => self.native(&mut site, op, native)?,
            OpKind::Moe(moe) => {
                let (mut items, last) = self.moe(&mut site, op, moe)?;
                for item in &mut items {
                    if let Item::New(node) = item {
                        rename(node, last, result);
                    }
                }
                return Ok(items);
            }
            OpKind::Grad(grad) => {
                return Err(ExportError::NoForm {
                    op: grad.name(),
                    what: "ops of training have no ONNX form; export the model before losses were put on it".into(),
                });
            }
            OpKind::Onnx(_) => Operand::None,
        };
        site.nodes
            .iter_mut()
            .for_each(|node| rename(node, last, result));
        Ok(site.nodes.into_iter().map(Item::New).collect())
    }

    /// The stated type of an ONNX value.
    fn value_dtype(&self, id: ValueId) -> Option<DType> {
        self.source.meta.get("opset_import")?;
        Some(self.graph.value(id)?.ty.as_ref()?.as_tensor()?.dtype)
    }

    /// Shapes of the source's values.
    pub(super) fn widths(&self) -> &Shapes {
        self.widths
            .get_or_init(|| infer_with(self.source, Trust::Stated, &mut |_| None))
    }

    /// Which region the op stands in.
    pub(super) fn region_of(&self, site: &Site) -> usize {
        self.regions.get(&site.at.op).copied().unwrap_or(0)
    }

    /// A name that nothing has yet.
    pub(super) fn fresh(&mut self, wanted: &str) -> String {
        let mut name = wanted.to_owned();
        let mut count = 1;
        while !self.names.insert(name.clone()) {
            count += 1;
            name = format!("{wanted}_{count}");
        }
        name
    }

    /// Adds a node with one result.
    pub(super) fn node(
        &mut self,
        site: &mut Site,
        (domain, op_type): (&str, &str),
        inputs: Vec<Operand>,
        attrs: Vec<(&str, Attr)>,
    ) -> Operand {
        if domain == "com.microsoft" && self.contrib.last() != Some(&self.index) {
            self.contrib.push(self.index);
        }
        let name = self.fresh(&format!("{}/{op_type}", site.name));
        let result = self.graph.add_value(&format!("{name}_output"), None);
        let attrs = attrs
            .into_iter()
            .map(|(name, attr)| (name.to_owned(), attr))
            .collect();
        let kind = OpKind::Onnx(OnnxOp {
            domain: domain.to_owned(),
            op_type: op_type.to_owned(),
            overload: String::new(),
            attrs: Attrs(attrs),
        });
        let meta = std::mem::take(&mut site.meta);
        site.nodes.push(Op {
            name,
            kind,
            inputs,
            results: vec![Some(result)],
            meta,
        });
        Operand::Value(result)
    }

    /// A node of the standard domain.
    pub(super) fn standard(
        &mut self,
        site: &mut Site,
        op_type: &str,
        inputs: Vec<Operand>,
        attrs: Vec<(&str, Attr)>,
    ) -> Operand {
        self.node(site, ("", op_type), inputs, attrs)
    }

    /// A tensor that is made while the model is written.
    pub(super) fn made(
        &mut self,
        site: &Site,
        suffix: &str,
        dtype: DType,
        dims: &[usize],
        recipe: Recipe,
    ) -> WeightId {
        let Recipe {
            term, piece, form, ..
        } = recipe;
        let key = (site.key.clone(), format!("{term} {piece:?} {form:?}"));
        if let Some(&id) = self.made.get(&key) {
            return id;
        }
        let name = self.fresh(&format!("{}.{suffix}", site.name));
        let id = self.add_tensor(&name, dtype, dims, Storage::Absent);
        self.recipes.insert(name, recipe);
        self.made.insert(key, id);
        id
    }

    /// A small tensor.
    pub(super) fn inline(
        &mut self,
        site: &Site,
        suffix: &str,
        dtype: DType,
        dims: &[usize],
        bytes: Vec<u8>,
    ) -> Operand {
        let key = (format!("{dtype} {dims:?}"), format!("{bytes:?}"));
        if let Some(&id) = self.made.get(&key) {
            return Operand::Weight(id);
        }
        let name = self.fresh(&format!("{}.{suffix}", site.name));
        let id = self.add_tensor(&name, dtype, dims, Storage::Inline(bytes));
        self.made.insert(key, id);
        Operand::Weight(id)
    }

    /// A list of integers.
    pub(super) fn ints(&mut self, site: &Site, suffix: &str, values: &[i64]) -> Operand {
        let bytes = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.inline(site, suffix, DType::I64, &[values.len()], bytes)
    }

    /// A scalar of the activations' type.
    pub(super) fn scalar(&mut self, site: &Site, suffix: &str, value: f32) -> Option<Operand> {
        let bytes = super::recipe::encode(std::iter::once(value), site.dtype)?;
        Some(self.inline(site, suffix, site.dtype, &[], bytes))
    }

    fn add_tensor(
        &mut self,
        name: &str,
        dtype: DType,
        dims: &[usize],
        storage: Storage,
    ) -> WeightId {
        self.out.add_weight(Weight {
            name: name.to_owned(),
            dtype,
            dims: dims.iter().map(|&dim| dim as u64).collect(),
            storage,
            sha256: None,
            meta: Attrs::new(),
        })
    }

    /// Adds up parts; `None` where there are none.
    pub(super) fn sum(&mut self, site: &mut Site, parts: &[Operand]) -> Option<Operand> {
        let (&first, rest) = parts.split_first()?;
        let add = |sum, &part| self.standard(site, "Add", vec![sum, part], Vec::new());
        Some(rest.iter().fold(first, add))
    }

    /// Casts a tensor to the activations' type where it has another.
    pub(super) fn cast(&mut self, site: &mut Site, operand: Operand, from: DType) -> Operand {
        if from == site.dtype {
            return operand;
        }
        let to = Attr::Int(i64::from(site.dtype.onnx_number()));
        self.standard(site, "Cast", vec![operand], vec![("to", to)])
    }
}

/// Lets the last node make the op's own result.
fn rename(node: &mut Op, last: Operand, result: Option<ValueId>) {
    for slot in &mut node.results {
        if slot.map(Operand::Value) == Some(last) {
            *slot = result;
        }
    }
}

/// A term that has no form.
pub(super) const TRELLIS: &str =
    "trellis codes have no ONNX form; write a .hlrc folder, or use int4, int3 or int2";

pub(super) const ROTATED: &str = "a table whose rows are rotated among each other has no ONNX form: a \
    row would need its whole block; write a .hlrc folder, or give the vocabulary a pass that does not \
    rotate, as `vocabulary(int4)`";

pub(super) fn no_form(site: &Site, what: &str) -> ExportError {
    ExportError::NoForm {
        op: site.name.clone(),
        what: what.to_owned(),
    }
}
