//! Every message and field of the ONNX format, one table per message.
//!
//! Source: `onnx.proto` of ONNX 1.23 (IR version 14). The tables drive the
//! decoder, the encoder's canonical form and the names in errors; the
//! constants beside them (`node::OP_TYPE`) are how code names a field.

/// What a field holds, and so how it may stand on the wire.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// `int32`, `int64`, `uint64` or an enum: a varint.
    Int,
    /// `float`: four bytes.
    Float,
    /// `double`: eight bytes.
    Double,
    /// `string`: UTF-8.
    Text,
    /// `bytes`.
    Bytes,
    /// A message with its own table.
    Message(&'static Schema),
}

/// One field of a message.
#[derive(Debug, Clone, Copy)]
pub struct FieldSpec {
    /// Field number.
    pub number: u32,
    /// Name in `onnx.proto`.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// May occur any number of times.
    pub repeated: bool,
    /// Canonically packed; either form is accepted.
    pub packed: bool,
    /// Tensor data: stays a range of the file, never copied.
    pub payload: bool,
}

/// The table of one message.
pub struct Schema {
    /// Name in `onnx.proto`.
    pub name: &'static str,
    /// Fields by ascending number.
    pub fields: &'static [FieldSpec],
}

/// The name only: tables refer to each other in circles.
impl std::fmt::Debug for Schema {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Schema {
    /// The field with `number`, if the format has it.
    pub fn field(&self, number: u32) -> Option<&'static FieldSpec> {
        self.fields.iter().find(|field| field.number == number)
    }
}

macro_rules! flags {
    (one) => {
        (false, false, false)
    };
    (many) => {
        (true, false, false)
    };
    (packed) => {
        (true, true, true)
    };
    (payload) => {
        (false, false, true)
    };
}

macro_rules! messages {
    ($($module:ident $table:ident $title:literal {
        $($constant:ident $name:literal = $number:literal $flag:ident $kind:expr;)*
    })*) => {
        $(
            #[doc = concat!("Field numbers of `", $title, "`.")]
            pub mod $module {
                $(#[doc = concat!("`", $name, "`")] pub const $constant: u32 = $number;)*
            }
            #[doc = concat!("Table of `", $title, "`.")]
            pub static $table: Schema = Schema {
                name: $title,
                fields: &[$(FieldSpec {
                    number: $number,
                    name: $name,
                    kind: $kind,
                    repeated: flags!($flag).0,
                    packed: flags!($flag).1,
                    payload: flags!($flag).2,
                }),*],
            };
        )*
    };
}

use Kind::{Bytes, Double, Float, Int, Message, Text};

messages! {
model MODEL "ModelProto" {
    IR_VERSION "ir_version" = 1 one Int;
    PRODUCER_NAME "producer_name" = 2 one Text;
    PRODUCER_VERSION "producer_version" = 3 one Text;
    DOMAIN "domain" = 4 one Text;
    MODEL_VERSION "model_version" = 5 one Int;
    DOC_STRING "doc_string" = 6 one Text;
    GRAPH "graph" = 7 one Message(&GRAPH);
    OPSET_IMPORT "opset_import" = 8 many Message(&OPSET);
    METADATA_PROPS "metadata_props" = 14 many Message(&ENTRY);
    TRAINING_INFO "training_info" = 20 many Message(&TRAINING);
    FUNCTIONS "functions" = 25 many Message(&FUNCTION);
    CONFIGURATION "configuration" = 26 many Message(&DEVICE_CONFIGURATION);
}
graph GRAPH "GraphProto" {
    NODE "node" = 1 many Message(&NODE);
    NAME "name" = 2 one Text;
    INITIALIZER "initializer" = 5 many Message(&TENSOR);
    DOC_STRING "doc_string" = 10 one Text;
    INPUT "input" = 11 many Message(&VALUE_INFO);
    OUTPUT "output" = 12 many Message(&VALUE_INFO);
    VALUE_INFO "value_info" = 13 many Message(&VALUE_INFO);
    QUANTIZATION_ANNOTATION "quantization_annotation" = 14 many Message(&ANNOTATION);
    SPARSE_INITIALIZER "sparse_initializer" = 15 many Message(&SPARSE_TENSOR);
    METADATA_PROPS "metadata_props" = 16 many Message(&ENTRY);
}
node NODE "NodeProto" {
    INPUT "input" = 1 many Text;
    OUTPUT "output" = 2 many Text;
    NAME "name" = 3 one Text;
    OP_TYPE "op_type" = 4 one Text;
    ATTRIBUTE "attribute" = 5 many Message(&ATTRIBUTE);
    DOC_STRING "doc_string" = 6 one Text;
    DOMAIN "domain" = 7 one Text;
    OVERLOAD "overload" = 8 one Text;
    METADATA_PROPS "metadata_props" = 9 many Message(&ENTRY);
    DEVICE_CONFIGURATIONS "device_configurations" = 10 many Message(&NODE_DEVICE);
}
attribute ATTRIBUTE "AttributeProto" {
    NAME "name" = 1 one Text;
    F "f" = 2 one Float;
    I "i" = 3 one Int;
    S "s" = 4 one Bytes;
    T "t" = 5 one Message(&TENSOR);
    G "g" = 6 one Message(&GRAPH);
    FLOATS "floats" = 7 many Float;
    INTS "ints" = 8 many Int;
    STRINGS "strings" = 9 many Bytes;
    TENSORS "tensors" = 10 many Message(&TENSOR);
    GRAPHS "graphs" = 11 many Message(&GRAPH);
    DOC_STRING "doc_string" = 13 one Text;
    TP "tp" = 14 one Message(&TYPE);
    TYPE_PROTOS "type_protos" = 15 many Message(&TYPE);
    TYPE "type" = 20 one Int;
    REF_ATTR_NAME "ref_attr_name" = 21 one Text;
    SPARSE_TENSOR "sparse_tensor" = 22 one Message(&SPARSE_TENSOR);
    SPARSE_TENSORS "sparse_tensors" = 23 many Message(&SPARSE_TENSOR);
}
tensor TENSOR "TensorProto" {
    DIMS "dims" = 1 many Int;
    DATA_TYPE "data_type" = 2 one Int;
    SEGMENT "segment" = 3 one Message(&SEGMENT);
    FLOAT_DATA "float_data" = 4 packed Float;
    INT32_DATA "int32_data" = 5 packed Int;
    STRING_DATA "string_data" = 6 many Bytes;
    INT64_DATA "int64_data" = 7 packed Int;
    NAME "name" = 8 one Text;
    RAW_DATA "raw_data" = 9 payload Bytes;
    DOUBLE_DATA "double_data" = 10 packed Double;
    UINT64_DATA "uint64_data" = 11 packed Int;
    DOC_STRING "doc_string" = 12 one Text;
    EXTERNAL_DATA "external_data" = 13 many Message(&ENTRY);
    DATA_LOCATION "data_location" = 14 one Int;
    METADATA_PROPS "metadata_props" = 16 many Message(&ENTRY);
}
segment SEGMENT "TensorProto.Segment" {
    BEGIN "begin" = 1 one Int;
    END "end" = 2 one Int;
}
sparse_tensor SPARSE_TENSOR "SparseTensorProto" {
    VALUES "values" = 1 one Message(&TENSOR);
    INDICES "indices" = 2 one Message(&TENSOR);
    DIMS "dims" = 3 many Int;
}
annotation ANNOTATION "TensorAnnotation" {
    TENSOR_NAME "tensor_name" = 1 one Text;
    QUANT_PARAMETER_TENSOR_NAMES "quant_parameter_tensor_names" = 2 many Message(&ENTRY);
}
value_info VALUE_INFO "ValueInfoProto" {
    NAME "name" = 1 one Text;
    TYPE "type" = 2 one Message(&TYPE);
    DOC_STRING "doc_string" = 3 one Text;
    METADATA_PROPS "metadata_props" = 4 many Message(&ENTRY);
}
type_proto TYPE "TypeProto" {
    TENSOR_TYPE "tensor_type" = 1 one Message(&TENSOR_TYPE);
    SEQUENCE_TYPE "sequence_type" = 4 one Message(&ELEMENT_TYPE);
    MAP_TYPE "map_type" = 5 one Message(&MAP_TYPE);
    DENOTATION "denotation" = 6 one Text;
    OPAQUE_TYPE "opaque_type" = 7 one Message(&OPAQUE_TYPE);
    SPARSE_TENSOR_TYPE "sparse_tensor_type" = 8 one Message(&TENSOR_TYPE);
    OPTIONAL_TYPE "optional_type" = 9 one Message(&ELEMENT_TYPE);
}
tensor_type TENSOR_TYPE "TypeProto.Tensor or TypeProto.SparseTensor" {
    ELEM_TYPE "elem_type" = 1 one Int;
    SHAPE "shape" = 2 one Message(&SHAPE);
}
element_type ELEMENT_TYPE "TypeProto.Sequence or TypeProto.Optional" {
    ELEM_TYPE "elem_type" = 1 one Message(&TYPE);
}
map_type MAP_TYPE "TypeProto.Map" {
    KEY_TYPE "key_type" = 1 one Int;
    VALUE_TYPE "value_type" = 2 one Message(&TYPE);
}
opaque_type OPAQUE_TYPE "TypeProto.Opaque" {
    DOMAIN "domain" = 1 one Text;
    NAME "name" = 2 one Text;
}
shape SHAPE "TensorShapeProto" {
    DIM "dim" = 1 many Message(&DIMENSION);
}
dimension DIMENSION "TensorShapeProto.Dimension" {
    DIM_VALUE "dim_value" = 1 one Int;
    DIM_PARAM "dim_param" = 2 one Text;
    DENOTATION "denotation" = 3 one Text;
}
function FUNCTION "FunctionProto" {
    NAME "name" = 1 one Text;
    INPUT "input" = 4 many Text;
    OUTPUT "output" = 5 many Text;
    ATTRIBUTE "attribute" = 6 many Text;
    NODE "node" = 7 many Message(&NODE);
    DOC_STRING "doc_string" = 8 one Text;
    OPSET_IMPORT "opset_import" = 9 many Message(&OPSET);
    DOMAIN "domain" = 10 one Text;
    ATTRIBUTE_PROTO "attribute_proto" = 11 many Message(&ATTRIBUTE);
    VALUE_INFO "value_info" = 12 many Message(&VALUE_INFO);
    OVERLOAD "overload" = 13 one Text;
    METADATA_PROPS "metadata_props" = 14 many Message(&ENTRY);
}
opset OPSET "OperatorSetIdProto" {
    DOMAIN "domain" = 1 one Text;
    VERSION "version" = 2 one Int;
}
entry ENTRY "StringStringEntryProto" {
    KEY "key" = 1 one Text;
    VALUE "value" = 2 one Text;
}
training TRAINING "TrainingInfoProto" {
    INITIALIZATION "initialization" = 1 one Message(&GRAPH);
    ALGORITHM "algorithm" = 2 one Message(&GRAPH);
    INITIALIZATION_BINDING "initialization_binding" = 3 many Message(&ENTRY);
    UPDATE_BINDING "update_binding" = 4 many Message(&ENTRY);
}
device_configuration DEVICE_CONFIGURATION "DeviceConfigurationProto" {
    NAME "name" = 1 one Text;
    NUM_DEVICES "num_devices" = 2 one Int;
    DEVICE "device" = 3 many Text;
}
node_device NODE_DEVICE "NodeDeviceConfigurationProto" {
    CONFIGURATION_ID "configuration_id" = 1 one Text;
    SHARDING_SPEC "sharding_spec" = 2 many Message(&SHARDING);
    PIPELINE_STAGE "pipeline_stage" = 3 one Int;
}
sharding SHARDING "ShardingSpecProto" {
    TENSOR_NAME "tensor_name" = 1 one Text;
    DEVICE "device" = 2 many Int;
    INDEX_TO_DEVICE_GROUP_MAP "index_to_device_group_map" = 3 many Message(&INT_LIST);
    SHARDED_DIM "sharded_dim" = 4 many Message(&SHARDED_DIM);
}
int_list INT_LIST "IntIntListEntryProto" {
    KEY "key" = 1 one Int;
    VALUE "value" = 2 many Int;
}
sharded_dim SHARDED_DIM "ShardedDimProto" {
    AXIS "axis" = 1 one Int;
    SIMPLE_SHARDING "simple_sharding" = 2 many Message(&SIMPLE_SHARDING);
}
simple_sharding SIMPLE_SHARDING "SimpleShardedDimProto" {
    DIM_VALUE "dim_value" = 1 one Int;
    DIM_PARAM "dim_param" = 2 one Text;
    NUM_SHARDS "num_shards" = 3 one Int;
}
}
