//! `AttributeProto` → [`Attr`]; the way back is in [`super::build`].
//!
//! Kinds that ONNX has and attributes of the IR have not are dictionaries
//! with one telling key: `ref` (a function's attribute), `sparse`, `list` (an
//! empty list and its type), `proto` (anything else, field by field).

use super::graph::Importer;
use super::{ImportError, generic, types};
use crate::ir::{Attr, Attrs, Float};
use crate::onnx::message::Message;
use crate::onnx::schema::{attribute as field, sparse_tensor};

/// `AttributeProto.AttributeType`.
pub(super) mod kind {
    pub(crate) const FLOAT: i64 = 1;
    pub(crate) const INT: i64 = 2;
    pub(crate) const STRING: i64 = 3;
    pub(crate) const TENSOR: i64 = 4;
    pub(crate) const GRAPH: i64 = 5;
    pub(crate) const FLOATS: i64 = 6;
    pub(crate) const INTS: i64 = 7;
    pub(crate) const STRINGS: i64 = 8;
    pub(crate) const TENSORS: i64 = 9;
    pub(crate) const GRAPHS: i64 = 10;
    pub(crate) const SPARSE_TENSOR: i64 = 11;
    pub(crate) const SPARSE_TENSORS: i64 = 12;
    pub(crate) const TYPE_PROTO: i64 = 13;
    pub(crate) const TYPE_PROTOS: i64 = 14;
}

/// Field that each type uses, in the order in which an absent type is guessed.
const FIELDS: [(i64, u32); 14] = [
    (kind::FLOAT, field::F),
    (kind::INT, field::I),
    (kind::STRING, field::S),
    (kind::TENSOR, field::T),
    (kind::GRAPH, field::G),
    (kind::FLOATS, field::FLOATS),
    (kind::INTS, field::INTS),
    (kind::STRINGS, field::STRINGS),
    (kind::TENSORS, field::TENSORS),
    (kind::GRAPHS, field::GRAPHS),
    (kind::SPARSE_TENSOR, field::SPARSE_TENSOR),
    (kind::SPARSE_TENSORS, field::SPARSE_TENSORS),
    (kind::TYPE_PROTO, field::TP),
    (kind::TYPE_PROTOS, field::TYPE_PROTOS),
];

/// The type of an attribute; files before IR version 2 leave it to guessing.
pub(super) fn kind_of(message: &Message) -> i64 {
    let stated = message.int(field::TYPE).filter(|&kind| kind != 0);
    let guessed = || {
        FIELDS
            .iter()
            .find(|(_, field)| message.has(*field))
            .map(|(kind, _)| *kind)
    };
    stated.or_else(guessed).unwrap_or(0)
}

impl Importer<'_> {
    /// The value of an attribute; tensors are those that were declared before.
    pub(super) fn attribute(
        &mut self,
        message: &Message,
        place: &str,
    ) -> Result<Attr, ImportError> {
        if let Some(name) = message
            .text(field::REF_ATTR_NAME)
            .filter(|name| !name.is_empty())
        {
            let mut dict = Attrs::new();
            dict.set("ref", Attr::str(name));
            dict.set("type", Attr::Int(kind_of(message)));
            return Ok(Attr::Dict(dict));
        }
        let kind = kind_of(message);
        let attr = match kind {
            kind::FLOAT => Attr::Float(Float(message.float(field::F).unwrap_or(0.0))),
            kind::INT => Attr::Int(message.int(field::I).unwrap_or(0)),
            kind::STRING => Attr::Str(
                message
                    .byte_strings(field::S)
                    .last()
                    .unwrap_or(&[])
                    .to_vec(),
            ),
            kind::FLOATS => Attr::Floats(
                message
                    .floats(field::FLOATS)
                    .into_iter()
                    .map(Float)
                    .collect(),
            ),
            kind::INTS => Attr::Ints(message.ints(field::INTS)),
            kind::STRINGS => Attr::Strs(
                message
                    .byte_strings(field::STRINGS)
                    .map(<[u8]>::to_vec)
                    .collect(),
            ),
            kind::TYPE_PROTO if message.has(field::TP) => Attr::Type(types::from_message(
                message.message(field::TP).unwrap_or(message),
            )),
            kind::TENSOR if message.has(field::T) => self.next_tensor(place)?,
            kind::GRAPH => match message.message(field::G) {
                Some(graph) => Attr::Region(Box::new(self.region(graph, place)?)),
                None => self.other(message),
            },
            kind::SPARSE_TENSOR => match message.message(field::SPARSE_TENSOR) {
                Some(sparse) => self.sparse(sparse, place)?,
                None => self.other(message),
            },
            kind::TENSORS | kind::GRAPHS | kind::SPARSE_TENSORS | kind::TYPE_PROTOS => {
                self.list(message, kind, place)?
            }
            _ => self.other(message),
        };
        Ok(attr)
    }

    fn other(&self, message: &Message) -> Attr {
        let mut dict = Attrs::new();
        // Tensors and graphs that the type doesn't name stay bytes of the node's layout.
        let skipped = [
            field::NAME,
            field::T,
            field::G,
            field::TENSORS,
            field::GRAPHS,
            field::SPARSE_TENSOR,
            field::SPARSE_TENSORS,
        ];
        let proto = generic::to_attrs(message, &skipped, self.origin.file);
        dict.set("proto", Attr::Dict(proto));
        Attr::Dict(dict)
    }

    fn list(&mut self, message: &Message, kind: i64, place: &str) -> Result<Attr, ImportError> {
        let mut list = Vec::new();
        match kind {
            kind::TENSORS => {
                for _ in message.messages(field::TENSORS) {
                    list.push(self.next_tensor(place)?);
                }
            }
            kind::GRAPHS => {
                for graph in message.messages(field::GRAPHS) {
                    list.push(Attr::Region(Box::new(self.region(graph, place)?)));
                }
            }
            kind::SPARSE_TENSORS => {
                for sparse in message.messages(field::SPARSE_TENSORS) {
                    list.push(self.sparse(sparse, place)?);
                }
            }
            _ => {
                let types = message.messages(field::TYPE_PROTOS);
                list.extend(types.map(|ty| Attr::Type(types::from_message(ty))));
            }
        }
        if !list.is_empty() {
            return Ok(Attr::List(list));
        }
        let mut dict = Attrs::new();
        dict.set("list", Attr::Int(kind));
        Ok(Attr::Dict(dict))
    }

    /// `{sparse={values=@v, indices=@i, dims=ints[…]}}`
    pub(super) fn sparse(&mut self, message: &Message, place: &str) -> Result<Attr, ImportError> {
        let mut parts = Attrs::new();
        for (name, number) in [
            ("values", sparse_tensor::VALUES),
            ("indices", sparse_tensor::INDICES),
        ] {
            if message.has(number) {
                parts.set(name, self.next_tensor(place)?);
            }
        }
        parts.set("dims", Attr::Ints(message.ints(sparse_tensor::DIMS)));
        let mut dict = Attrs::new();
        dict.set("sparse", Attr::Dict(parts));
        Ok(Attr::Dict(dict))
    }
}
