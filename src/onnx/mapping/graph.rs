//! `GraphProto`, `FunctionProto`, `NodeProto` → regions and ops.

use std::collections::{HashMap, HashSet, VecDeque};

use super::build::Builder;
use super::tensor::{self, Origin};
use super::{ENTITIES, ImportError, Sources, generic, layout_of, types};
use crate::ir::{
    Attr, Attrs, Graph, Module, OnnxOp, Op, OpId, OpKind, Operand, Region, ValueId, WeightId,
};
use crate::onnx::message::Message;
use crate::onnx::schema::{attribute as attr_field, graph, node, sparse_tensor};
use crate::onnx::schema::{tensor as tensor_field, value_info};

/// Nesting of subgraphs that is followed; messages nest less deep anyway.
pub(super) const MAX_DEPTH: usize = 48;

/// Marks an input that only declares an initializer.
pub const INITIALIZER: &str = "initializer";

/// State of one import.
pub(super) struct Importer<'a> {
    pub(super) origin: Origin<'a>,
    pub(super) module: Module,
    pub(super) graph: Graph,
    /// Names visible in the graphs being read, innermost last.
    pub(super) scopes: Vec<HashMap<String, Operand>>,
    weight_names: HashSet<String>,
    /// Tensors of attributes, declared before everything else, in order.
    pub(super) free: VecDeque<WeightId>,
    /// Initializers are constants even where an input has their name.
    pub(super) constant_inputs: bool,
}

/// Which values of a region have a type, while it is read.
#[derive(Default)]
pub(super) struct Typed {
    made: Vec<ValueId>,
    typed: HashSet<ValueId>,
    by_output: HashSet<ValueId>,
}

impl<'a> Importer<'a> {
    pub(super) fn new(origin: Origin<'a>) -> Self {
        Self {
            origin,
            module: Module::default(),
            graph: Graph::default(),
            scopes: Vec::new(),
            weight_names: HashSet::new(),
            free: VecDeque::new(),
            constant_inputs: false,
        }
    }

    pub(super) fn weight(
        &mut self,
        message: &Message,
        wanted: &str,
        place: &dyn Fn() -> String,
    ) -> Result<WeightId, ImportError> {
        let mut name = if wanted.is_empty() { "tensor" } else { wanted }.to_owned();
        let mut count = 1;
        while !self.weight_names.insert(name.clone()) {
            count += 1;
            name = format!(
                "{}#{count}",
                if wanted.is_empty() { "tensor" } else { wanted }
            );
        }
        let weight = tensor::from_message(message, name, &mut self.origin, place)?;
        Ok(self.module.add_weight(weight))
    }

    pub(super) fn define(
        &mut self,
        name: &str,
        operand: Operand,
        place: &dyn Fn() -> String,
    ) -> Result<(), ImportError> {
        let Some(scope) = self.scopes.last_mut() else {
            return Ok(());
        };
        let before = scope.insert(name.to_owned(), operand);
        match before {
            None => Ok(()),
            Some(_) => Err(ImportError::Twice {
                place: place(),
                name: name.to_owned(),
            }),
        }
    }

    pub(super) fn resolve(
        &self,
        name: &str,
        place: &dyn Fn() -> String,
    ) -> Result<Operand, ImportError> {
        if name.is_empty() {
            return Ok(Operand::None);
        }
        let found = self.scopes.iter().rev().find_map(|scope| scope.get(name));
        let missing = || ImportError::Undefined {
            place: place(),
            name: name.to_owned(),
        };
        found.copied().ok_or_else(missing)
    }

    /// A graph or subgraph. `place` leads to it.
    pub(super) fn region(&mut self, message: &Message, place: &str) -> Result<Region, ImportError> {
        if self.scopes.len() > MAX_DEPTH {
            return Err(ImportError::Depth {
                place: place.to_owned(),
                limit: MAX_DEPTH,
            });
        }
        self.scopes.push(HashMap::new());
        let mut region = Region {
            name: message.text_or_empty(graph::NAME).to_owned(),
            ..Region::default()
        };
        for (index, tensor) in message.messages(graph::INITIALIZER).enumerate() {
            let name = tensor.text_or_empty(tensor_field::NAME);
            let here = || format!("{place}, initializer {index} {name:?}");
            let id = self.weight(tensor, name, &here)?;
            self.define(name, Operand::Weight(id), &here)?;
            region.weights.push(id);
        }
        for (index, info) in message.messages(graph::INPUT).enumerate() {
            region
                .inputs
                .push(self.input(info, &|| format!("{place}, input {index}"))?);
        }
        let mapped = [
            graph::NODE,
            graph::NAME,
            graph::INITIALIZER,
            graph::INPUT,
            graph::OUTPUT,
            graph::VALUE_INFO,
            graph::SPARSE_INITIALIZER,
        ];
        region.meta = generic::to_attrs(message, &mapped, self.origin.file);
        self.sparse_initializers(message, &mut region, place)?;
        let mut typed = Typed::default();
        for (index, one) in message.messages(graph::NODE).enumerate() {
            let id = self.node(one, &node_place(place, index, one), &mut typed)?;
            region.ops.push(id);
        }
        self.outputs(message, &mut region, &mut typed, place)?;
        self.value_infos(message.messages(graph::VALUE_INFO), &mut region, &mut typed);
        self.scopes.pop();
        let mut sources = Sources::new(self.origin.path.clone());
        let rebuilt = Builder::shallow(&self.module, &self.graph, &mut sources).graph(&region);
        if let Ok(rebuilt) = rebuilt {
            layout_of(
                &mut region.meta,
                message,
                &rebuilt,
                &ENTITIES,
                self.origin.file,
            );
        }
        Ok(region)
    }

    fn input(
        &mut self,
        info: &Message,
        place: &dyn Fn() -> String,
    ) -> Result<ValueId, ImportError> {
        let name = info.text_or_empty(value_info::NAME);
        let (ty, meta) = types::from_value_info(info, self.origin.file);
        let id = self.graph.add_value(name, Some(ty));
        if let Some(value) = self.graph.values.get_mut(id.index()) {
            value.meta = meta;
        }
        let known = self
            .scopes
            .last()
            .and_then(|scope| scope.get(name))
            .copied();
        match known {
            // Before IR version 4 every initializer had to be an input too.
            Some(Operand::Weight(_)) if self.constant_inputs => {
                if let Some(value) = self.graph.values.get_mut(id.index()) {
                    value.meta.set(INITIALIZER, Attr::Bool(true));
                }
            }
            Some(Operand::Weight(_)) => {
                let scope = self.scopes.last_mut();
                scope.map(|scope| scope.insert(name.to_owned(), Operand::Value(id)));
            }
            _ => self.define(name, Operand::Value(id), place)?,
        }
        Ok(id)
    }

    fn sparse_initializers(
        &mut self,
        message: &Message,
        region: &mut Region,
        place: &str,
    ) -> Result<(), ImportError> {
        let mut list = Vec::new();
        for sparse in message.messages(graph::SPARSE_INITIALIZER) {
            let attr = self.sparse(sparse, place)?;
            let values = sparse.message(sparse_tensor::VALUES);
            let name = values.map_or("", |tensor| tensor.text_or_empty(tensor_field::NAME));
            if let Attr::Dict(dict) = &attr {
                let weight = dict.weights().first().copied();
                if let (Some(id), false) = (weight, name.is_empty()) {
                    let here = || format!("{place}, sparse initializer {name:?}");
                    self.define(name, Operand::Weight(id), &here)?;
                }
            }
            list.push(attr);
        }
        if !list.is_empty() {
            region.meta.set("sparse_initializer", Attr::List(list));
        }
        Ok(())
    }

    pub(super) fn node(
        &mut self,
        message: &Message,
        place: &str,
        typed: &mut Typed,
    ) -> Result<OpId, ImportError> {
        let here = || place.to_owned();
        let inputs = message
            .texts(node::INPUT)
            .map(|name| self.resolve(name, &here));
        let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
        let mut attrs = Attrs::new();
        for attr in message.messages(node::ATTRIBUTE) {
            let name = attr.text_or_empty(attr_field::NAME);
            let value = self.attribute(attr, &format!("{place}, attribute {name:?}"))?;
            attrs.0.push((name.to_owned(), value));
        }
        let mut results = Vec::new();
        for name in message.texts(node::OUTPUT) {
            if name.is_empty() {
                results.push(None);
                continue;
            }
            let id = self.graph.add_value(name, None);
            self.define(name, Operand::Value(id), &here)?;
            typed.made.push(id);
            results.push(Some(id));
        }
        let text = |number| message.text_or_empty(number).to_owned();
        let mapped = [
            node::INPUT,
            node::OUTPUT,
            node::NAME,
            node::OP_TYPE,
            node::ATTRIBUTE,
            node::DOMAIN,
            node::OVERLOAD,
        ];
        let kind = OpKind::Onnx(OnnxOp {
            domain: text(node::DOMAIN),
            op_type: text(node::OP_TYPE),
            overload: text(node::OVERLOAD),
            attrs,
        });
        let meta = generic::to_attrs(message, &mapped, self.origin.file);
        let mut op = Op {
            name: text(node::NAME),
            kind,
            inputs,
            results,
            meta,
        };
        let mut sources = Sources::new(self.origin.path.clone());
        let rebuilt = Builder::shallow(&self.module, &self.graph, &mut sources).node(&op);
        if let Ok(rebuilt) = rebuilt {
            layout_of(&mut op.meta, message, &rebuilt, &ENTITIES, self.origin.file);
        }
        Ok(self.graph.add_op(op))
    }

    /// Outputs, and their types where the value can hold one.
    fn outputs(
        &mut self,
        message: &Message,
        region: &mut Region,
        typed: &mut Typed,
        place: &str,
    ) -> Result<(), ImportError> {
        let mut elsewhere = Attrs::new();
        let made: HashSet<ValueId> = typed.made.iter().copied().collect();
        for (index, info) in message.messages(graph::OUTPUT).enumerate() {
            let name = info.text_or_empty(value_info::NAME);
            let operand = self.resolve(name, &|| format!("{place}, output {index}"))?;
            region.outputs.push(operand);
            match operand {
                Operand::Value(id) if made.contains(&id) && typed.by_output.insert(id) => {
                    typed.typed.insert(id);
                    self.set_type(id, info);
                }
                _ => {
                    let info = generic::to_entity(info, self.origin.file);
                    elsewhere.set(&index.to_string(), Attr::Dict(info));
                }
            }
        }
        if !elsewhere.is_empty() {
            region.meta.set("output_info", Attr::Dict(elsewhere));
        }
        Ok(())
    }

    fn set_type(&mut self, id: ValueId, info: &Message) {
        let (ty, meta) = types::from_value_info(info, self.origin.file);
        if let Some(value) = self.graph.values.get_mut(id.index()) {
            value.ty = Some(ty);
            value.meta = meta;
        }
    }

    /// Types of inner values. Their order is noted where it isn't the usual
    /// one, that of making; so are entries that name no value made here.
    pub(super) fn value_infos<'m>(
        &mut self,
        infos: impl Iterator<Item = &'m Message>,
        region: &mut Region,
        typed: &mut Typed,
    ) {
        let by_name: HashMap<String, ValueId> = typed
            .made
            .iter()
            .filter_map(|&id| Some((self.graph.value(id)?.name.clone(), id)))
            .collect();
        let mut listed = Vec::new();
        let mut order = Vec::new();
        for info in infos {
            let name = info.text_or_empty(value_info::NAME);
            match by_name.get(name) {
                Some(&id) if typed.typed.insert(id) => {
                    self.set_type(id, info);
                    listed.push(Attr::str(name));
                    order.push(id);
                }
                _ => listed.push(Attr::Dict(generic::to_entity(info, self.origin.file))),
            }
        }
        let usual = typed
            .made
            .iter()
            .copied()
            .filter(|id| order_has(typed, id))
            .collect::<Vec<_>>();
        if order != usual || listed.len() != order.len() {
            region.meta.set("value_info", Attr::List(listed));
        }
    }
}

fn order_has(typed: &Typed, id: &ValueId) -> bool {
    typed.typed.contains(id) && !typed.by_output.contains(id)
}

/// `graph, node 12 (MatMul "/encoder/MatMul")`
pub(super) fn node_place(place: &str, index: usize, message: &Message) -> String {
    let op = message.text_or_empty(node::OP_TYPE);
    format!(
        "{place}, node {index} ({op} {:?})",
        message.text_or_empty(node::NAME)
    )
}
