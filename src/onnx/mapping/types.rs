//! `TypeProto` ↔ [`Type`], `ValueInfoProto` ↔ type and metadata of a value.
//!
//! What a type can't say (denotations, element types of unknown number) is
//! left to the layout of the value info that holds it.

use super::{generic, layout_of, with_layout};
use crate::ir::{Attrs, Dim, TensorType, Type};
use crate::onnx::message::Message;
use crate::onnx::schema::{self, dimension, element_type, map_type, opaque_type, shape};
use crate::onnx::schema::{tensor_type, type_proto, value_info};
use crate::weights::DType;

/// The IR's type; [`Type::None`] where the message says less than a type.
pub fn from_message(message: &Message) -> Type {
    try_from_message(message).unwrap_or(Type::None)
}

fn try_from_message(message: &Message) -> Option<Type> {
    if let Some(tensor) = message.message(type_proto::TENSOR_TYPE) {
        return Some(Type::Tensor(tensor_from(tensor)?));
    }
    if let Some(tensor) = message.message(type_proto::SPARSE_TENSOR_TYPE) {
        return Some(Type::Sparse(tensor_from(tensor)?));
    }
    if let Some(inner) = message.message(type_proto::SEQUENCE_TYPE) {
        return Some(Type::Seq(Box::new(try_from_message(
            inner.message(element_type::ELEM_TYPE)?,
        )?)));
    }
    if let Some(inner) = message.message(type_proto::OPTIONAL_TYPE) {
        let element = try_from_message(inner.message(element_type::ELEM_TYPE)?)?;
        return Some(Type::Optional(Box::new(element)));
    }
    if let Some(map) = message.message(type_proto::MAP_TYPE) {
        let key = dtype(map.int(map_type::KEY_TYPE)?)?;
        let value = try_from_message(map.message(map_type::VALUE_TYPE)?)?;
        return Some(Type::Map(key, Box::new(value)));
    }
    let opaque = message.message(type_proto::OPAQUE_TYPE)?;
    let text = |number| opaque.text_or_empty(number).to_owned();
    Some(Type::Opaque(
        text(opaque_type::DOMAIN),
        text(opaque_type::NAME),
    ))
}

/// The element type that ONNX numbers `number`.
pub fn dtype(number: i64) -> Option<DType> {
    DType::from_onnx(i32::try_from(number).ok()?)
}

fn tensor_from(message: &Message) -> Option<TensorType> {
    let dtype = dtype(message.int(tensor_type::ELEM_TYPE)?)?;
    let shape = message
        .message(tensor_type::SHAPE)
        .map(|shape| shape.messages(shape::DIM).map(dim_from).collect());
    Some(TensorType { dtype, shape })
}

fn dim_from(message: &Message) -> Dim {
    // The members of a oneof: the later one holds.
    let last = message.fields.iter().rev().map(|field| field.number);
    for number in last {
        match number {
            dimension::DIM_VALUE => {
                if let Some(value) = message.int(number) {
                    return Dim::Known(value);
                }
            }
            dimension::DIM_PARAM => match message.text(number) {
                Some("") | None => {}
                Some(name) => return Dim::Symbol(name.to_owned()),
            },
            _ => {}
        }
    }
    Dim::Unknown
}

/// The message of a type; `None` for [`Type::None`].
pub fn to_message(ty: &Type) -> Option<Message> {
    let mut message = Message::new(&schema::TYPE);
    match ty {
        Type::None => return None,
        Type::Tensor(tensor) => message.put_message(type_proto::TENSOR_TYPE, tensor_to(tensor)),
        Type::Sparse(tensor) => {
            message.put_message(type_proto::SPARSE_TENSOR_TYPE, tensor_to(tensor))
        }
        Type::Seq(inner) => message.put_message(type_proto::SEQUENCE_TYPE, element_to(inner)),
        Type::Optional(inner) => message.put_message(type_proto::OPTIONAL_TYPE, element_to(inner)),
        Type::Map(key, value) => {
            let mut map = Message::new(&schema::MAP_TYPE);
            map.put_int(map_type::KEY_TYPE, i64::from(key.onnx_number()));
            if let Some(value) = to_message(value) {
                map.put_message(map_type::VALUE_TYPE, value);
            }
            message.put_message(type_proto::MAP_TYPE, map)
        }
        Type::Opaque(domain, name) => {
            let mut opaque = Message::new(&schema::OPAQUE_TYPE);
            opaque
                .put_text_if(opaque_type::DOMAIN, domain)
                .put_text_if(opaque_type::NAME, name);
            message.put_message(type_proto::OPAQUE_TYPE, opaque)
        }
    };
    Some(message)
}

fn element_to(inner: &Type) -> Message {
    let mut message = Message::new(&schema::ELEMENT_TYPE);
    if let Some(inner) = to_message(inner) {
        message.put_message(element_type::ELEM_TYPE, inner);
    }
    message
}

fn tensor_to(tensor: &TensorType) -> Message {
    let mut message = Message::new(&schema::TENSOR_TYPE);
    message.put_int(
        tensor_type::ELEM_TYPE,
        i64::from(tensor.dtype.onnx_number()),
    );
    if let Some(dims) = &tensor.shape {
        let mut shape = Message::new(&schema::SHAPE);
        for dim in dims {
            let mut one = Message::new(&schema::DIMENSION);
            match dim {
                Dim::Known(value) => {
                    one.put_int(dimension::DIM_VALUE, *value);
                }
                Dim::Symbol(name) => {
                    one.put_text(dimension::DIM_PARAM, name);
                }
                Dim::Unknown => {}
            }
            shape.put_message(shape::DIM, one);
        }
        message.put_message(tensor_type::SHAPE, shape);
    }
    message
}

/// Type and metadata that a value info gives its value.
pub fn from_value_info(message: &Message, file: &[u8]) -> (Type, Attrs) {
    let ty = message
        .message(value_info::TYPE)
        .map_or(Type::None, from_message);
    let mut meta = generic::to_attrs(message, &[value_info::NAME, value_info::TYPE], file);
    let rebuilt = to_value_info(message.text_or_empty(value_info::NAME), &ty, &meta);
    layout_of(&mut meta, message, &rebuilt, &[], file);
    (ty, meta)
}

/// The value info of a value called `name`.
pub fn to_value_info(name: &str, ty: &Type, meta: &Attrs) -> Message {
    let mut message = Message::new(&schema::VALUE_INFO);
    message.put_text_if(value_info::NAME, name);
    if let Some(ty) = to_message(ty) {
        message.put_message(value_info::TYPE, ty);
    }
    generic::put_attrs(&mut message, meta);
    with_layout(message.canonical(), meta)
}
