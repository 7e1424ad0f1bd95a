//! Tensors of attributes, declared before the nodes that hold them are read.

use super::graph::{Importer, MAX_DEPTH, node_place};
use super::{ImportError, attribute};
use crate::ir::Attr;
use crate::onnx::message::Message;
use crate::onnx::schema::tensor as tensor_field;
use crate::onnx::schema::{attribute as attr_field, function, graph, node, sparse_tensor};

impl Importer<'_> {
    /// Declares the tensors of all attributes below a list of nodes, in the
    /// order in which [`Importer::next_tensor`] is going to ask for them.
    pub(super) fn declare<'m>(
        &mut self,
        nodes: impl Iterator<Item = &'m Message>,
        place: &str,
        depth: usize,
    ) -> Result<(), ImportError> {
        if depth > MAX_DEPTH {
            return Err(ImportError::Depth {
                place: place.to_owned(),
                limit: MAX_DEPTH,
            });
        }
        for (index, message) in nodes.enumerate() {
            let place = node_place(place, index, message);
            let output = message.texts(node::OUTPUT).find(|name| !name.is_empty());
            let stem = output.unwrap_or_else(|| message.text_or_empty(node::NAME));
            for attr in message.messages(node::ATTRIBUTE) {
                self.declare_attribute(message, attr, stem, &place, depth)?;
            }
        }
        Ok(())
    }

    fn declare_attribute(
        &mut self,
        message: &Message,
        attr: &Message,
        stem: &str,
        place: &str,
        depth: usize,
    ) -> Result<(), ImportError> {
        if attr
            .text(attr_field::REF_ATTR_NAME)
            .is_some_and(|name| !name.is_empty())
        {
            return Ok(());
        }
        let attr_name = attr.text_or_empty(attr_field::NAME);
        let constant = message.text(node::OP_TYPE) == Some("Constant");
        let name = if constant {
            stem.to_owned()
        } else {
            format!("{stem}.{attr_name}")
        };
        let place = format!("{place}, attribute {attr_name:?}");
        let here = || place.clone();
        use attribute::kind;
        match attribute::kind_of(attr) {
            kind::TENSOR => self.declare_all(attr.message(attr_field::T), &name, &here),
            kind::TENSORS => self.declare_all(attr.messages(attr_field::TENSORS), &name, &here),
            kind::SPARSE_TENSOR => {
                let sparse = attr.message(attr_field::SPARSE_TENSOR);
                self.declare_sparse(sparse, &name, &here)
            }
            kind::SPARSE_TENSORS => {
                self.declare_sparse(attr.messages(attr_field::SPARSE_TENSORS), &name, &here)
            }
            kind::GRAPH => {
                let graphs = attr.message(attr_field::G);
                graphs
                    .into_iter()
                    .try_for_each(|g| self.declare_graph(g, &place, depth + 1))
            }
            kind::GRAPHS => attr
                .messages(attr_field::GRAPHS)
                .try_for_each(|g| self.declare_graph(g, &place, depth + 1)),
            _ => Ok(()),
        }
    }

    pub(super) fn declare_graph(
        &mut self,
        message: &Message,
        place: &str,
        depth: usize,
    ) -> Result<(), ImportError> {
        let here = || format!("{place}, sparse initializer");
        for sparse in message.messages(graph::SPARSE_INITIALIZER) {
            let values = sparse.message(sparse_tensor::VALUES);
            let name = values.map_or("", |tensor| tensor.text_or_empty(tensor_field::NAME));
            self.declare_sparse(Some(sparse), name, &here)?;
        }
        self.declare(message.messages(graph::NODE), place, depth)
    }

    /// As [`Importer::declare`], for a function and its attributes' defaults.
    pub(super) fn declare_function(
        &mut self,
        message: &Message,
        place: &str,
    ) -> Result<(), ImportError> {
        for attr in message.messages(function::ATTRIBUTE_PROTO) {
            self.declare_attribute(message, attr, "default", place, 0)?;
        }
        self.declare(message.messages(function::NODE), place, 0)
    }

    fn declare_all<'m>(
        &mut self,
        tensors: impl IntoIterator<Item = &'m Message>,
        name: &str,
        place: &dyn Fn() -> String,
    ) -> Result<(), ImportError> {
        for tensor in tensors {
            let id = self.weight(tensor, name, place)?;
            self.free.push_back(id);
        }
        Ok(())
    }

    fn declare_sparse<'m>(
        &mut self,
        tensors: impl IntoIterator<Item = &'m Message>,
        name: &str,
        place: &dyn Fn() -> String,
    ) -> Result<(), ImportError> {
        for sparse in tensors {
            self.declare_all(sparse.message(sparse_tensor::VALUES), name, place)?;
            let indices = format!("{name}.indices");
            self.declare_all(sparse.message(sparse_tensor::INDICES), &indices, place)?;
        }
        Ok(())
    }

    /// The next tensor that was declared.
    pub(super) fn next_tensor(&mut self, place: &str) -> Result<Attr, ImportError> {
        let missing = || ImportError::Tensor {
            place: place.to_owned(),
            what: "has no data".to_owned(),
        };
        self.free.pop_front().map(Attr::Weight).ok_or_else(missing)
    }
}
