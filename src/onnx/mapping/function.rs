//! `FunctionProto` → a graph of its own.

use std::collections::HashMap;

use super::build::Builder;
use super::graph::{Importer, Typed, node_place};
use super::{ENTITIES, ImportError, Sources, generic, layout_of};
use crate::ir::{Attr, Attrs, Graph, Operand, Region};
use crate::onnx::message::Message;
use crate::onnx::schema::{attribute as attr_field, function};

impl Importer<'_> {
    /// A model-local function as a graph of its own.
    pub(super) fn function(&mut self, message: &Message, place: &str) -> Result<(), ImportError> {
        self.graph = Graph::default();
        self.scopes = vec![HashMap::new()];
        let mut region = Region {
            name: message.text_or_empty(function::NAME).to_owned(),
            ..Region::default()
        };
        let taken = |name: &str| {
            self.module
                .graphs
                .iter()
                .any(|graph| graph.body.name == name)
        };
        if taken(&region.name) {
            let domain = message.text_or_empty(function::DOMAIN);
            let overload = message.text_or_empty(function::OVERLOAD);
            region.name = format!("{domain}::{}::{overload}", region.name);
        }
        for name in message.texts(function::INPUT) {
            let id = self.graph.add_value(name, None);
            self.define(name, Operand::Value(id), &|| format!("{place}, input"))?;
            region.inputs.push(id);
        }
        let mapped = [
            function::INPUT,
            function::OUTPUT,
            function::NODE,
            function::ATTRIBUTE_PROTO,
            function::VALUE_INFO,
        ];
        region.meta = generic::to_attrs(message, &mapped, self.origin.file);
        let mut defaults = Attrs::new();
        for attr in message.messages(function::ATTRIBUTE_PROTO) {
            let name = attr.text_or_empty(attr_field::NAME);
            let value = self.attribute(attr, &format!("{place}, attribute {name:?}"))?;
            defaults.0.push((name.to_owned(), value));
        }
        if !defaults.is_empty() {
            region.meta.set("attribute_proto", Attr::Dict(defaults));
        }
        let mut typed = Typed::default();
        for (index, one) in message.messages(function::NODE).enumerate() {
            let id = self.node(one, &node_place(place, index, one), &mut typed)?;
            region.ops.push(id);
        }
        for name in message.texts(function::OUTPUT) {
            region
                .outputs
                .push(self.resolve(name, &|| format!("{place}, output"))?);
        }
        self.value_infos(
            message.messages(function::VALUE_INFO),
            &mut region,
            &mut typed,
        );
        let mut sources = Sources::new(self.origin.path.clone());
        let rebuilt = Builder::shallow(&self.module, &self.graph, &mut sources).function(&region);
        if let Ok(rebuilt) = rebuilt {
            layout_of(
                &mut region.meta,
                message,
                &rebuilt,
                &ENTITIES,
                self.origin.file,
            );
        }
        self.scopes.clear();
        let mut graph = std::mem::take(&mut self.graph);
        graph.body = region;
        self.module.graphs.push(graph);
        Ok(())
    }
}
