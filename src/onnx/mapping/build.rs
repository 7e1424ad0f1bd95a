//! The IR → ONNX messages.
//!
//! Every op has to be an ONNX op by now; linears and native ops are lowered
//! before (see the exporter).

use std::collections::HashSet;

use super::attribute::kind;
use super::{Sources, generic, tensor, types, with_layout};
use crate::ir::{Attr, Attrs, Graph, Module, Op, OpKind, Operand, Region, ValueId, WeightId};
use crate::onnx::message::Message;
use crate::onnx::schema::{self, attribute as field, function, graph, model, node};
use crate::onnx::schema::{sparse_tensor, value_info};

/// Why a module can't be written as ONNX messages.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// An op that no ONNX operator was chosen for.
    #[error("op {name:?} ({kind}) has no ONNX form")]
    NotOnnx {
        /// The op's name or its first result's.
        name: String,
        /// What it is.
        kind: &'static str,
    },
    /// The module has no graph.
    #[error("the module has no graph to write as ONNX; it holds weights only")]
    NoGraph,
}

/// Builds messages of one graph of a module.
pub struct Builder<'a> {
    module: &'a Module,
    graph: &'a Graph,
    sources: &'a mut Sources,
    /// Entities inside an entity are empty messages, for comparing layouts.
    shallow: bool,
}

impl<'a> Builder<'a> {
    /// Builds entities without what is inside them.
    pub(super) fn shallow(module: &'a Module, graph: &'a Graph, sources: &'a mut Sources) -> Self {
        Self {
            module,
            graph,
            sources,
            shallow: true,
        }
    }

    fn name(&self, id: ValueId) -> &'a str {
        self.graph.value(id).map_or("", |value| &value.name)
    }

    fn weight_name(&self, id: WeightId) -> &'a str {
        let Some(weight) = self.module.weight(id) else {
            return "";
        };
        weight
            .meta
            .get("name")
            .and_then(Attr::as_str)
            .unwrap_or(&weight.name)
    }

    fn operand(&self, operand: Operand) -> &'a str {
        match operand {
            Operand::None => "",
            Operand::Value(id) => self.name(id),
            Operand::Weight(id) => self.weight_name(id),
        }
    }

    /// A `NodeProto`.
    pub(super) fn node(&mut self, op: &Op) -> Result<Message, BuildError> {
        let OpKind::Onnx(onnx) = &op.kind else {
            let result = op.results.iter().flatten().next();
            let name = if op.name.is_empty() {
                result.map_or("", |&id| self.name(id))
            } else {
                &op.name
            };
            return Err(BuildError::NotOnnx {
                name: name.to_owned(),
                kind: kind_name(&op.kind),
            });
        };
        let mut message = Message::new(&schema::NODE);
        for &input in &op.inputs {
            message.put_text(node::INPUT, self.operand(input));
        }
        for result in &op.results {
            message.put_text(node::OUTPUT, result.map_or("", |id| self.name(id)));
        }
        message.put_text_if(node::NAME, &op.name);
        message.put_text(node::OP_TYPE, &onnx.op_type);
        for (name, attr) in onnx.attrs.iter() {
            let attr = self.attribute(name, attr)?;
            message.put_message(node::ATTRIBUTE, attr);
        }
        message.put_text_if(node::DOMAIN, &onnx.domain);
        message.put_text_if(node::OVERLOAD, &onnx.overload);
        generic::put_attrs(&mut message, &op.meta);
        Ok(with_layout(message.canonical(), &op.meta))
    }

    /// An `AttributeProto`.
    fn attribute(&mut self, name: &str, attr: &Attr) -> Result<Message, BuildError> {
        let mut message = Message::new(&schema::ATTRIBUTE);
        message.put_text_if(field::NAME, name);
        let kind = self.attribute_value(&mut message, attr)?;
        if kind != 0 {
            message.put_int(field::TYPE, kind);
        }
        Ok(message.canonical())
    }

    fn attribute_value(&mut self, message: &mut Message, attr: &Attr) -> Result<i64, BuildError> {
        Ok(match attr {
            Attr::Bool(value) => {
                message.put_int(field::I, i64::from(*value));
                kind::INT
            }
            Attr::Int(value) => {
                message.put_int(field::I, *value);
                kind::INT
            }
            Attr::Float(value) => {
                message.put_float(field::F, value.0);
                kind::FLOAT
            }
            Attr::Str(bytes) => {
                message.put_bytes(field::S, bytes);
                kind::STRING
            }
            Attr::Ints(values) => {
                message.put_ints(field::INTS, values);
                kind::INTS
            }
            Attr::Floats(values) => {
                let values: Vec<f32> = values.iter().map(|value| value.0).collect();
                message.put_floats(field::FLOATS, &values);
                kind::FLOATS
            }
            Attr::Strs(list) => {
                list.iter().for_each(|bytes| {
                    message.put_bytes(field::STRINGS, bytes);
                });
                kind::STRINGS
            }
            Attr::Weight(id) => {
                let tensor = self.tensor(*id);
                message.put_message(field::T, tensor);
                kind::TENSOR
            }
            Attr::Region(region) => {
                let graph = self.subgraph(region)?;
                message.put_message(field::G, graph);
                kind::GRAPH
            }
            Attr::Type(ty) => {
                if let Some(ty) = types::to_message(ty) {
                    message.put_message(field::TP, ty);
                }
                kind::TYPE_PROTO
            }
            Attr::List(list) => self.list(message, list)?,
            Attr::Dict(dict) => self.dict(message, dict),
        })
    }

    fn list(&mut self, message: &mut Message, list: &[Attr]) -> Result<i64, BuildError> {
        let mut last = kind::INTS;
        for item in list {
            last = match item {
                Attr::Weight(id) => {
                    let tensor = self.tensor(*id);
                    message.put_message(field::TENSORS, tensor);
                    kind::TENSORS
                }
                Attr::Region(region) => {
                    let graph = self.subgraph(region)?;
                    message.put_message(field::GRAPHS, graph);
                    kind::GRAPHS
                }
                Attr::Type(ty) => {
                    let ty = types::to_message(ty).unwrap_or_else(|| Message::new(&schema::TYPE));
                    message.put_message(field::TYPE_PROTOS, ty);
                    kind::TYPE_PROTOS
                }
                Attr::Dict(dict) => {
                    let sparse = self.sparse(dict);
                    message.put_message(field::SPARSE_TENSORS, sparse);
                    kind::SPARSE_TENSORS
                }
                _ => last,
            };
        }
        Ok(last)
    }

    /// The kinds that are dictionaries in the IR.
    fn dict(&mut self, message: &mut Message, dict: &Attrs) -> i64 {
        if let Some(name) = dict.get("ref").and_then(Attr::as_str) {
            message.put_text(field::REF_ATTR_NAME, name);
            return dict.get("type").and_then(Attr::as_int).unwrap_or(0);
        }
        if let Some(kind) = dict.get("list").and_then(Attr::as_int) {
            return kind;
        }
        if let Some(Attr::Dict(proto)) = dict.get("proto") {
            generic::put_attrs(message, proto);
            return 0;
        }
        let sparse = self.sparse(dict);
        message.put_message(field::SPARSE_TENSOR, sparse);
        kind::SPARSE_TENSOR
    }

    fn sparse(&mut self, dict: &Attrs) -> Message {
        let mut message = Message::new(&schema::SPARSE_TENSOR);
        let Some(Attr::Dict(parts)) = dict.get("sparse") else {
            return message;
        };
        for (name, number) in [
            ("values", sparse_tensor::VALUES),
            ("indices", sparse_tensor::INDICES),
        ] {
            if let Some(Attr::Weight(id)) = parts.get(name) {
                let tensor = self.tensor(*id);
                message.put_message(number, tensor);
            }
        }
        if let Some(dims) = parts.get("dims").and_then(Attr::as_ints) {
            message.put_ints(sparse_tensor::DIMS, dims);
        }
        message
    }

    fn tensor(&mut self, id: WeightId) -> Message {
        match self.module.weight(id) {
            Some(weight) if !self.shallow => tensor::to_message(weight, self.sources),
            _ => Message::new(&schema::TENSOR),
        }
    }

    fn subgraph(&mut self, region: &Region) -> Result<Message, BuildError> {
        if self.shallow {
            Ok(Message::new(&schema::GRAPH))
        } else {
            self.graph(region)
        }
    }

    /// A `GraphProto`.
    pub(super) fn graph(&mut self, region: &Region) -> Result<Message, BuildError> {
        let mut message = Message::new(&schema::GRAPH);
        self.nodes(&mut message, graph::NODE, region)?;
        let name = region
            .meta
            .get("name")
            .and_then(Attr::as_str)
            .unwrap_or(&region.name);
        message.put_text_if(graph::NAME, name);
        for &id in &region.weights {
            let tensor = self.tensor(id);
            message.put_message(graph::INITIALIZER, tensor);
        }
        for &id in &region.inputs {
            let info = self.value_info(id);
            message.put_message(graph::INPUT, info);
        }
        for (index, &output) in region.outputs.iter().enumerate() {
            let info = self.output_info(region, index, output);
            message.put_message(graph::OUTPUT, info);
        }
        self.value_infos(&mut message, graph::VALUE_INFO, region, &region.outputs);
        if let Some(Attr::List(list)) = region.meta.get("sparse_initializer") {
            for item in list {
                if let Attr::Dict(dict) = item {
                    let sparse = self.sparse(dict);
                    message.put_message(graph::SPARSE_INITIALIZER, sparse);
                }
            }
        }
        let own = ["name", "sparse_initializer", "value_info", "output_info"];
        generic::put_attrs(&mut message, &without(&region.meta, &own));
        Ok(with_layout(message.canonical(), &region.meta))
    }

    fn nodes(
        &mut self,
        message: &mut Message,
        number: u32,
        region: &Region,
    ) -> Result<(), BuildError> {
        for &id in &region.ops {
            let node = match self.graph.op(id) {
                Some(op) if !self.shallow => self.node(op)?,
                _ => Message::new(&schema::NODE),
            };
            message.put_message(number, node);
        }
        Ok(())
    }

    fn value_info(&self, id: ValueId) -> Message {
        match self.graph.value(id) {
            Some(value) => {
                let none = crate::ir::Type::None;
                types::to_value_info(&value.name, value.ty.as_ref().unwrap_or(&none), &value.meta)
            }
            None => Message::new(&schema::VALUE_INFO),
        }
    }

    fn output_info(&self, region: &Region, index: usize, output: Operand) -> Message {
        if let Some(Attr::Dict(infos)) = region.meta.get("output_info")
            && let Some(Attr::Dict(info)) = infos.get(&index.to_string())
        {
            return generic::from_entity(&schema::VALUE_INFO, info);
        }
        match output {
            Operand::Value(id) => self.value_info(id),
            _ => {
                let mut message = Message::new(&schema::VALUE_INFO);
                message.put_text_if(value_info::NAME, self.operand(output));
                message
            }
        }
    }

    /// Types of values made here that aren't outputs, in the noted order.
    fn value_infos(
        &self,
        message: &mut Message,
        number: u32,
        region: &Region,
        outputs: &[Operand],
    ) {
        let outputs: HashSet<Operand> = outputs.iter().copied().collect();
        let made: Vec<ValueId> = region
            .ops
            .iter()
            .filter_map(|&id| self.graph.op(id))
            .flat_map(|op| op.results.iter().flatten().copied())
            .filter(|&id| self.graph.value(id).is_some_and(|value| value.ty.is_some()))
            .filter(|&id| !outputs.contains(&Operand::Value(id)))
            .collect();
        let noted = match region.meta.get("value_info") {
            Some(Attr::List(list)) => list.as_slice(),
            _ => &[],
        };
        let mut left: Vec<Option<ValueId>> = made.iter().copied().map(Some).collect();
        let by_name: std::collections::HashMap<&str, usize> = made
            .iter()
            .enumerate()
            .map(|(at, &id)| (self.name(id), at))
            .collect();
        for item in noted {
            match item {
                Attr::Dict(info) => {
                    message.put_message(number, generic::from_entity(&schema::VALUE_INFO, info));
                }
                other => {
                    let at = other.as_str().and_then(|name| by_name.get(name));
                    let id = at.and_then(|&at| left.get_mut(at)).and_then(Option::take);
                    if let Some(id) = id {
                        message.put_message(number, self.value_info(id));
                    }
                }
            }
        }
        for id in left.into_iter().flatten() {
            message.put_message(number, self.value_info(id));
        }
    }

    /// A `FunctionProto`.
    pub(super) fn function(&mut self, region: &Region) -> Result<Message, BuildError> {
        let mut message = Message::new(&schema::FUNCTION);
        for &id in &region.inputs {
            message.put_text(function::INPUT, self.name(id));
        }
        for &output in &region.outputs {
            message.put_text(function::OUTPUT, self.operand(output));
        }
        self.nodes(&mut message, function::NODE, region)?;
        if let Some(Attr::Dict(defaults)) = region.meta.get("attribute_proto") {
            for (name, attr) in defaults.iter() {
                let attr = self.attribute(name, attr)?;
                message.put_message(function::ATTRIBUTE_PROTO, attr);
            }
        }
        self.value_infos(&mut message, function::VALUE_INFO, region, &[]);
        generic::put_attrs(
            &mut message,
            &without(&region.meta, &["value_info", "attribute_proto"]),
        );
        Ok(with_layout(message.canonical(), &region.meta))
    }

    /// The `ModelProto` of a module whose ops are all ONNX ops.
    ///
    /// # Errors
    /// No graph, or an op that isn't lowered.
    pub fn model(module: &Module, sources: &mut Sources) -> Result<Message, BuildError> {
        Self::model_with(module, sources, false)
    }

    pub(super) fn model_with(
        module: &Module,
        sources: &mut Sources,
        shallow: bool,
    ) -> Result<Message, BuildError> {
        let mut message = Message::new(&schema::MODEL);
        generic::put_attrs(&mut message, &module.meta);
        if module.graphs.is_empty() {
            return Err(BuildError::NoGraph);
        }
        for (index, graph) in module.graphs.iter().enumerate() {
            let mut builder = Builder {
                module,
                graph,
                sources: &mut *sources,
                shallow,
            };
            let (number, inner) = match (index, shallow) {
                (0, true) => (model::GRAPH, Message::new(&schema::GRAPH)),
                (_, true) => (model::FUNCTIONS, Message::new(&schema::FUNCTION)),
                (0, false) => (model::GRAPH, builder.graph(&graph.body)?),
                (_, false) => (model::FUNCTIONS, builder.function(&graph.body)?),
            };
            message.put_message(number, inner);
        }
        Ok(with_layout(message.canonical(), &module.meta))
    }
}

fn without(meta: &Attrs, names: &[&str]) -> Attrs {
    let kept = meta
        .iter()
        .filter(|(name, _)| !names.contains(&name.as_str()));
    Attrs(kept.cloned().collect())
}

fn kind_name(kind: &OpKind) -> &'static str {
    match kind {
        OpKind::Linear(_) => "linear",
        OpKind::Embedding(_) => "embedding",
        OpKind::Moe(_) => "moe",
        OpKind::Native(native) => native.name(),
        OpKind::Grad(_) => "grad",
        OpKind::Onnx(_) => "onnx",
    }
}
