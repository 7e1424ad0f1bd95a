//! Shape inference on small modules, by their text.

use super::*;
use crate::ir::text::parse;

/// `name: dtype[dims]` of the named values of the first graph.
fn inferred(inputs: &str, weights: &str, ops: &str, wanted: &[&str]) {
    let results: Vec<&str> = wanted.iter().filter_map(|w| w.split(':').next()).collect();
    let outputs = results.iter().map(|name| format!("%{name}"));
    let outputs = outputs.collect::<Vec<_>>().join(", ");
    let text = format!(
        "hlir 1\nmodule \"m\" {{ graph @main({inputs}) -> ({outputs}) {{ {weights}\n{ops} }} }}"
    );
    let module = parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let shapes = infer(&module);
    for (name, wanted) in results.iter().zip(wanted) {
        let graph = &module.graphs[0];
        let found = graph.values.iter().position(|value| value.name == *name);
        let known = shapes.of(0, ValueId::new(found.expect("a value"))).unwrap();
        assert_eq!(format!("{name}: {}", shown(known)), **wanted, "{text}");
    }
}

fn shown(known: &Known) -> String {
    let dim = |dim: &Dim| match dim {
        Dim::Known(size) => size.to_string(),
        Dim::Symbol(text) => text.clone(),
        Dim::Unknown => "-".to_owned(),
    };
    let dtype = known.dtype.map_or("?", |dtype| dtype.name());
    match &known.dims {
        Some(dims) => {
            let dims: Vec<String> = dims.iter().map(dim).collect();
            format!("{dtype}[{}]", dims.join(","))
        }
        None => format!("{dtype}[*]"),
    }
}

#[test]
fn broadcasting_keeps_names() {
    inferred(
        "%x : f32[B,S,8], %y : f32[8], %z : f32[B,1,1], %u : f32[T,8], %v",
        "",
        "%a = onnx.Add(%x, %y) %b = onnx.Mul(%z, %x) %c = onnx.Sub(%x, %u) %d = onnx.Less(%x, %y)
         %e = onnx.Add(%x, %v) %f = onnx.Fancy(%x) %g = onnx.Relu(%f) %h = onnx.Pow(%z, %u)",
        &[
            "a: f32[B,S,8]",
            "b: f32[B,S,8]",
            "c: f32[B,?1,8]",
            "d: bool[B,S,8]",
            "e: f32[*]",
            "f: ?[*]",
            "g: ?[*]",
            "h: f32[B,T,8]",
        ],
    );
}

#[test]
fn products_have_their_shapes() {
    inferred(
        "%x : f32[B,S,8], %q : f32[B,4,S,2], %k : f32[B,4,2,T], %m : f32[8,R], %v : f32[8], %i : f32[N,3,32,W]",
        "weight @w : f32[8,5] = none weight @c : f32[6,3,3,3] = none weight @r : f32[1,5,3] = none",
        "%a = onnx.MatMul(%x, @w) %b = onnx.MatMul(%q, %k) %c = onnx.MatMul(%v, %m) %d = onnx.MatMul(%x, %v)
         %e = onnx.Gemm(%m, @w) {transA=1} %f = onnx.Conv(%i, @c) {strides=ints[2,1], pads=ints[1,1,1,1]}
         %g = onnx.MaxPool(%i) {kernel_shape=ints[2,2], strides=ints[2,2]}
         %h = onnx.Einsum(%x, @w) {equation=\"bsd,dk->bks\"} %i2, %j, _ = onnx.LSTM(%x, _, @r) {hidden_size=3}
         %k2 = onnx.GlobalAveragePool(%i) %l = onnx.\"com.microsoft\".MatMulNBits(%x) {K=8, N=12}",
        &[
            "a: f32[B,S,5]",
            "b: f32[B,4,S,T]",
            "c: f32[R]",
            "d: f32[B,S]",
            "e: f32[R,5]",
            "f: f32[N,6,16,W]",
            "g: f32[N,3,16,?1]",
            "h: f32[B,5,S]",
            "i2: f32[B,1,S,3]",
            "j: f32[1,S,3]",
            "k2: f32[N,3,1,1]",
            "l: f32[B,S,12]",
        ],
    );
}

/// `Shape → Gather → Unsqueeze → Concat → Reshape`, as exporters write heads.
#[test]
fn shape_arithmetic_is_computed() {
    inferred(
        "%x : f32[B,S,8], %p : f32[B,past,8]",
        "weight @zero : i64[] = hex\"0000000000000000\" weight @one : i64[] = hex\"0100000000000000\"
         weight @ax : i64[1] = hex\"0000000000000000\" weight @hd : i64[2] = hex\"04000000000000000200000000000000\"
         weight @open : i64[3] = hex\"0000000000000000ffffffffffffffff0400000000000000\"",
        "%s = onnx.Shape(%x) %b = onnx.Gather(%s, @zero) %l = onnx.Gather(%s, @one)
         %b1 = onnx.Unsqueeze(%b, @ax) %l1 = onnx.Unsqueeze(%l, @ax)
         %t = onnx.Concat(%b1, %l1, @hd) {axis=0} %h = onnx.Reshape(%x, %t)
         %o = onnx.Transpose(%h) {perm=ints[0,2,1,3]} %r = onnx.Reshape(%x, @open)
         %all = onnx.Concat(%p, %x) {axis=1} %as = onnx.Shape(%all) {start=1, end=2}
         %n = onnx.Squeeze(%as, @ax) %range = onnx.Range(@zero, %n, @one)
         %double = onnx.Mul(%l, @hd) %z = onnx.ConstantOfShape(%double)
         %flat = onnx.Flatten(%x) {axis=2} %count = onnx.Size(%x)",
        &[
            "s: i64[3]",
            "h: f32[B,S,4,2]",
            "o: f32[B,4,S,2]",
            "r: f32[B,2*S,4]",
            "all: f32[B,S + past,8]",
            "range: i64[S + past]",
            "z: f32[4*S,2*S]",
            "flat: f32[B*S,8]",
            "count: i64[]",
        ],
    );
}

#[test]
fn cuts_and_joins() {
    inferred(
        "%x : f32[B,S,8], %i : i64[B,T], %c : bool[], %p : i64[1]",
        "weight @t : f32[512,4] = none weight @s : i64[2] = hex\"00000000000000000200000000000000\"
         weight @e : i64[2] = hex\"ffffffffffffff7ffeffffffffffffff\" weight @a : i64[2] = hex\"01000000000000000200000000000000\"
         weight @z1 : i64[1] = hex\"0000000000000000\" weight @o1 : i64[1] = hex\"0100000000000000\"",
        "%a = onnx.Slice(%x, @s, @e, @a) %b = onnx.Gather(@t, %i)
         %len = onnx.Shape(%x) {start=1, end=2} %pos = onnx.Slice(@t, @z1, %len, @z1)
         %sum = onnx.Gather(%x, @o1) {axis=2} %u, %v = onnx.Split(%x) {axis=2}
         %part = onnx.Slice(%x, @z1, %p, @o1) %red = onnx.ReduceMean(%x) {axes=ints[-1]}
         %all = onnx.ReduceSum(%x) {keepdims=0} %arg = onnx.ArgMax(%x) {axis=-1, keepdims=0}
         %un = onnx.Unsqueeze(%x) {axes=ints[0,-1]} %k, %kt = onnx.TopK(%x, @o1)",
        &[
            "a: f32[B,S,4]",
            "b: f32[B,T,4]",
            "pos: f32[min(S, 512),4]",
            "sum: f32[B,S,1]",
            "u: f32[B,S,4]",
            "v: f32[B,S,4]",
            "part: f32[B,?1,8]",
            "red: f32[B,S,1]",
            "all: f32[]",
            "arg: i64[B,S]",
            "un: f32[1,B,S,8,1]",
            "k: f32[B,S,1]",
            "kt: i64[B,S,1]",
        ],
    );
}

/// A table of positions cut to the length goes with the length.
#[test]
fn what_is_cut_to_a_length_broadcasts_to_it() {
    inferred(
        "%x : f32[B,S,4], %c : bool[]",
        "weight @t : f32[512,4] = none weight @z1 : i64[1] = hex\"0000000000000000\" weight @m : i64[] = hex\"ffffffffffffffff\"",
        "%len = onnx.Shape(%x) {start=1, end=2} %pos = onnx.Slice(@t, @z1, %len, @z1) %y = onnx.Add(%pos, %x)
         %s = onnx.Shape(%x) %ones = onnx.ConstantOfShape(%s) {value=@m} %o = onnx.Shape(%s)
         %fill = onnx.ConstantOfShape(%o) {value=@m} %eq = onnx.Equal(%s, %fill)
         %target = onnx.Where(%eq, %fill, %s) %z = onnx.Expand(%c, %target)",
        &["y: f32[B,S,4]", "ones: i64[B,S,4]", "z: bool[B,S,4]"],
    );
}

#[test]
fn branches_and_loops() {
    inferred(
        "%x : f32[B,4], %p : bool[], %n : i64[]",
        "weight @true : bool[] = hex\"01\"",
        "%a = onnx.If(%p) {then_branch=region \"t\"() -> (%a1) { %a1 = onnx.Relu(%x) },
            else_branch=region \"e\"() -> (%a2) { %a2 = onnx.Concat(%x, %x) {axis=1} }}
         %b = onnx.If(@true) {then_branch=region \"t\"() -> (%b1) { %b1 = onnx.Relu(%x) },
            else_branch=region \"e\"() -> (%b2) { %b2 = onnx.Shape(%x) }}
         %c, %d = onnx.Loop(%n, @true, %x) {body=region \"l\"(%i, %go, %v) -> (%go, %v1, %w) {
            %v1 = onnx.Concat(%v, %v) {axis=0} %w = onnx.Relu(%x) }}",
        &["a: f32[B,?1]", "b: f32[B,4]", "c: f32[*]", "d: f32[?2,B,4]"],
    );
}

#[test]
fn native_ops_have_widths() {
    inferred(
        "%ids : i64[B,S]",
        "weight @t : f32[100,8] = none weight @w : f32[12,8] = none weight @g : f32[8] = none",
        "%e = embedding %ids [100,8] { dense(@t) } : f32[B,S,8] %n = rms_norm %e, @g {eps=0.1}
         %q = linear %n [12,8] { dense(@w) } %s = slice %q {start=4, width=4} %a = add %e, %n
         %c = linear %n [12,8] { dense(@w) } layout(columns) %f = first_token %a",
        &[
            "e: f32[B,S,8]",
            "q: f32[B,S,12]",
            "s: f32[B,S,4]",
            "a: f32[B,S,8]",
            "c: f32[B,12,8]",
            "f: f32[B,8]",
        ],
    );
}

#[test]
fn statements_complete_and_contradictions_are_unknown() {
    inferred(
        "%x : f32[B,\"2*seq + 1\",8], %y",
        "",
        "%a = onnx.Fancy(%x) : f32[B,6] %b = onnx.Relu(%a) %c = onnx.Relu(%x) : f32[3,N,9]
         %d = onnx.Relu(%y) : f32[K] %e = onnx.Relu(%d) %f = onnx.Relu(%x)",
        &[
            "b: f32[B,6]",
            "c: f32[3,2*seq + 1,?1]",
            "e: f32[K]",
            "f: f32[B,2*seq + 1,8]",
        ],
    );
}

/// Odd attributes and shapes give unknown results, not panics or guesses.
#[test]
fn malformed_nodes_are_unknown() {
    inferred(
        "%x : f32[4,6], %s : f32[], %h : f32[9223372036854775807,9223372036854775807]",
        "weight @far : i64[2] = hex\"ffffffffffffff7fffffffffffffff7f\"",
        "%a = onnx.Transpose(%x) {perm=ints[0,5]} %b = onnx.Flatten(%x) {axis=9} %c = onnx.Concat(%x) {axis=\"1\"}
         %d = onnx.Gather(%x, %s) {axis={ref=\"axis\"}} %e = onnx.MatMul(%s, %x) %f = onnx.Reshape(%x, @far)
         %g = onnx.Conv(%x, %x) %i = onnx.Flatten(%h) {axis=0} %j = onnx.Split(%x) {axis=7} %k = onnx.Gather()
         %l = onnx.Mul() %m = onnx.Unsqueeze(%x) {axes=ints[0,0]} %n = onnx.ConstantOfShape(@far) %o = onnx.Size(%n)",
        &[
            "a: ?[*]",
            "b: ?[*]",
            "c: ?[*]",
            "d: ?[*]",
            "e: f32[*]",
            "f: f32[9223372036854775807,9223372036854775807]",
            "g: f32[*]",
            "i: f32[1,?1]",
            "j: ?[*]",
            "k: ?[*]",
            "l: ?[*]",
            "m: f32[*]",
            "n: f32[9223372036854775807,9223372036854775807]",
            "o: i64[]",
        ],
    );
}

/// Found by random modules: a list of starts that says it is as long as the address space.
#[test]
fn sizes_that_no_memory_holds_are_unknown() {
    inferred(
        "%x : f32[4,6], %s : i64[9223372036854775807], %i : i64[2,2]",
        "weight @far : i64[1] = hex\"ffffffffffffff7f\"",
        "%a = onnx.Slice(%x, %s, %s) %b = onnx.Tile(%x, @far) %c = onnx.ConstantOfShape(@far)
         %d = onnx.Gather(%i, %i) %e = onnx.Gather(%d, %d) %f = onnx.Gather(%e, %e) %g = onnx.Gather(%f, %f)
         %h = onnx.Gather(%g, %g) %j = onnx.Gather(%h, %h) %k = onnx.Gather(%j, %j)",
        &["a: f32[?1,?2]", "k: i64[*]"],
    );
}

#[test]
fn only_inputs_are_trusted_where_that_is_asked() {
    let text = "hlir 1\nmodule \"m\" { graph @main(%x : f32[2]) -> (%y) { %z = onnx.Fancy(%x) : f32[3] %y = onnx.Add(%z, %z) } }";
    let module = parse(text).expect("text");
    let value = |name: &str| {
        let at = module.graphs[0].values.iter().position(|v| v.name == name);
        ValueId::new(at.expect("a value"))
    };
    let shapes = infer_with(&module, Trust::Inputs, &mut |_| None);
    assert_eq!(shapes.rank(0, value("x")), Some(1));
    assert_eq!(shapes.rank(0, value("y")), None);
    assert_eq!(infer(&module).size(0, value("y"), -1), Some(3));
}
