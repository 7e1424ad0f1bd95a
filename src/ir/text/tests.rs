//! Round trips, mistakes with their places, and text that is no module.

use proptest::prelude::*;

use super::{parse, print};
use crate::ir::patch::normalize;
use crate::ir::verify::verify;

const MODULE: &str = r#"hlir 1
module "tiny \x01\"é" meta{format="on\xffx", opsets=[{domain="", version=17}]} {
  weight @wq : f32[4,8] = file("dir/model.onnx", 0x1a2b40, 128) sha256:7f31
  weight @stack : bf16[2,4,8] = synthetic(seed=7, power=1.2, scale=0.02, outliers=0.001)
  weight @rows : f32[2,2] = concat(file("a.bin", 0x8, 8), hex"0000803f00000040")
  weight @codes : u8[4,4] = none
  weight @scales : f16[4,1] = hex"003c003c003c003c"
  weight @u : f16[8] = none
  weight @v : f16[16] = none
  weight @v2 : f16[32] = none
  weight @values : f16[3] = none
  weight @columns : u16[3] = none
  weight @offsets : u32[5] = none
  weight @bias : f32[4] = hex"00000000000000000000000000000000" meta{doc="zeros"}
  graph @main(%x : f32[B,"seq + 1",8], %"1" : seq<optional<f32[*]>>, %mask) -> (%y, %3, @wq, _) meta{doc="hi"} {
    weight @init : i64[2] = varint("dir/model.onnx", 0x10, 3)
    %0 = linear %x [4,8] { dense(@wq) } bias(@bias) : f32[B,"seq + 1",4]
    %1 = linear %x [4,8] { low_rank(f16(@u), f16(@v), r=2) + sparse(@values, @columns, @offsets, nnz=3) + quant(@codes, @scales, int4, group=32) } layout(channels, 2) scale(0.5) role(head) name("/a b/MatMul") meta{doc="d"}
    %2 = linear %x [4,8] { low_rank(f16(@u), f16(@v2), blocks=[(0+2, 0+8, r=2), (2+2, 0+8, r=2)]) + dense(@stack, index=1) }
    %3 = rms_norm %0, @bias {eps=0.00001, unit_offset=true}
    %4 = rope %3, %mask {heads=2, head_dim=2, rotary_dim=2, theta=10000.0, scaling={type="linear", factor=2.0}}
    %5, _ = onnx."com.microsoft".Fancy(%4, _, @init) {alpha=1.0, nan=nan(0x7fc00001), list=ints[1,-2], empty=floats[], names=strings["a","\x00"], then=region "body"(%inner : f32[]) -> (%inner, %out, %x) {
      %out = onnx."odd type"(%inner, %0)
    }, t=@codes, ty=type(map<i64, f32[?,3]>)} : f32[?] meta{doc="v"}, ?
    %6 = moe %0, %1 {top_k=1, normalize=true} experts [region "0"(%7) -> (%7) {
    }, region "1"(%8) -> (%9) {
      %9 = activate %8 {function="silu"}
    }]
    %y = add %6, %3
  }
}
"#;

#[test]
fn everything_comes_back() {
    let module = parse(MODULE).unwrap_or_else(|e| panic!("{e}"));
    let text = print(&module);
    assert_eq!(text, MODULE);
    assert_eq!(parse(&text).unwrap(), module);
    assert_eq!(normalize(&module), module);
    verify(&module).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn mistakes_have_places() {
    let cases = [
        ("", "1:1: expected `hlir`"),
        ("hlir 2", "1:7: text form 2"),
        (
            "hlir 1 module \"m\" { graph @g() -> (%y) { } }",
            "value %y is not made",
        ),
        (
            "hlir 1\nmodule \"m\" {\n  weight @w : f33[1] = none\n}",
            "3:15: `f33` is no element type",
        ),
        (
            "hlir 1 module m { graph @g(%x) -> () { %y = rms_norm %x, %x {eqs=1} } }",
            "rms_norm: unknown field `eqs`",
        ),
        (
            "hlir 1 module m { graph @g(%x, %x) -> () { } }",
            "made twice",
        ),
    ];
    for (text, expected) in cases {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text:?} gave {error}");
    }
}

#[test]
fn violations_are_all_listed() {
    let text = r#"hlir 1
module "m" {
  weight @w : f32[2,3] = file("x", 0x0, 20)
  weight @b : f32[3] = none
  graph @main(%x) -> (%y) {
    %y = linear %x, %x [2,4] { dense(@w) + dense(@w) } bias(@b)
  }
}
"#;
    let violations = verify(&parse(text).unwrap()).unwrap_err();
    let all = violations.to_string();
    for part in [
        "needs 24 bytes, has 20",
        "more than one dense term",
        "is [2, 3], needs [2, 4]",
        "the matrix has 2 rows",
        "has 2 inputs, needs 1",
    ] {
        assert!(all.contains(part), "no {part:?} in {all}");
    }
}

proptest! {
    #[test]
    fn any_text_is_no_panic(text in "\\PC*") {
        let _ = parse(&text);
    }

    #[test]
    fn mutated_text_is_no_panic(at in 0usize..MODULE.len(), with in any::<u8>(), cut in any::<bool>()) {
        let mut bytes = MODULE.as_bytes().to_vec();
        if cut {
            bytes.truncate(at);
        } else {
            bytes[at] = with;
        }
        if let Ok(module) = parse(&String::from_utf8_lossy(&bytes)) {
            let _ = verify(&module);
            let text = print(&module);
            prop_assert_eq!(parse(&text).map(|m| print(&m)), Ok(text));
        }
    }
}
