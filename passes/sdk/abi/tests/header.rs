//! The header says what this crate says: its text is current, and a C compiler lays structs out alike.

use std::mem::offset_of;
use std::path::Path;
use std::process::Command;

use hlrc_pass_abi::*;

const HEADER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../include/hlrc_pass.h");

#[test]
fn the_header_is_current() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(here.join("cbindgen.toml")).expect("a configuration");
    let mut builder = cbindgen::Builder::new().with_config(config);
    for file in ["lib", "matrix", "module", "plugin", "host"] {
        builder = builder.with_src(here.join(format!("src/{file}.rs")));
    }
    let mut made = Vec::new();
    builder.generate().expect("a header").write(&mut made);
    let made = String::from_utf8(made).expect("text");
    if std::env::var("UPDATE_GOLDENFILES").is_ok_and(|v| v == "1") {
        std::fs::create_dir_all(here.join("../include")).expect("a folder");
        std::fs::write(HEADER, &made).expect("written");
    }
    let kept = std::fs::read_to_string(HEADER).expect("include/hlrc_pass.h");
    assert_eq!(
        kept, made,
        "UPDATE_GOLDENFILES=1 cargo test --release -p hlrc-pass-abi makes it anew"
    );
}

/// Name, offset and size, as both sides print them.
macro_rules! fields {
    ($out:ident, $kind:ident: $($field:ident),*) => {
        $out.push((stringify!($kind).to_string(), String::new(), size_of::<$kind>()));
        $($out.push((
            stringify!($kind).to_string(),
            stringify!($field).to_string(),
            offset_of!($kind, $field),
        ));)*
    };
}

fn layout() -> Vec<(String, String, usize)> {
    let mut out = Vec::new();
    fields!(out, HlrcStr: data, len);
    fields!(out, HlrcTensor: name, dtype, rank, dims, data, len);
    fields!(out, HlrcTermView: size, kind, rows, cols, attributes, tensors, tensor_count);
    fields!(out, HlrcPlugin: size, abi_major, abi_minor, name, version, passes, pass_count, terms, term_count);
    fields!(out, HlrcPassDef: size, name, summary, doc, schema, user, create, destroy, traits, cost, peel, peel_stored, run);
    fields!(out, HlrcTermDef: size, name, summary, user, check, add_rows, multiply, onnx, backward);
    fields!(out, HlrcQuantizer: bits, symmetric, group, method, feedback);
    fields!(out, HlrcRotation: out_block, in_block, seed);
    fields!(out, HlrcMatrixTraits: size, access, residual, calibration, quantizes, has_quantizer, quantizer);
    fields!(out, HlrcCost: size, workspace_bytes, term_bytes, nanos);
    fields!(out, HlrcMoments: size, tokens, width, diagonal, hessian);
    fields!(out, HlrcPeel: size, site, rows, cols, residual, seed, rotation_seed, next, moments, earlier_count, quantized_later, reserved, rotation, term);
    fields!(out, HlrcStored: size, dtype, reserved, data, len, rows, cols);
    fields!(out, HlrcPeelStored: size, term, weight_squares, residual_squares);
    fields!(out, HlrcEarlier: size, term, traits);
    fields!(out, HlrcOpRef: graph, op);
    fields!(out, HlrcOperand: kind, id);
    fields!(out, HlrcGraphInfo: size, name, ops, op_count, inputs, input_count, outputs, output_count);
    fields!(out, HlrcOpInfo: size, kind, name, attributes, inputs, input_count, results, result_count, rows, cols, term_count, bias);
    fields!(out, HlrcValueInfo: size, name, ty);
    fields!(out, HlrcWeightInfo: size, name, dtype, rank, dims, bytes);
    fields!(out, HlrcOnnxNode: size, op_type, inputs, input_count, output, attributes);
    fields!(out, HlrcHost: size, abi_major, abi_minor, version, fail, last_error, remark, progress, cancelled, random, term_new, term_view, term_add_rows, note, earlier, earlier_set, module_text, module_set_text, graph_count, graph_info, op_info, op_term, op_rows, value_info, weight_count, weight_info, weight_data, weight_new, weight_drop, value_new, op_new, op_copy, op_set_name, op_set_inputs, op_set_results, op_clear_terms, op_add_term, op_replace, graph_set_ports, onnx_tensor, onnx_node, onnx_output, term_drop, seed, op_site, moments);
    out
}

#[test]
fn c_lays_structs_out_alike() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut source =
        String::from("#include <stdio.h>\n#include \"hlrc_pass.h\"\nint main(void) {\n");
    let mut expected = String::new();
    for (kind, field, number) in layout() {
        let what = match field.is_empty() {
            true => format!("sizeof({kind})"),
            false => format!("offsetof({kind}, {field})"),
        };
        source.push_str(&format!("  printf(\"{what} %zu\\n\", {what});\n"));
        expected.push_str(&format!("{what} {number}\n"));
    }
    source.push_str("  return 0;\n}\n");
    let (file, program) = (folder.path().join("layout.c"), folder.path().join("layout"));
    std::fs::write(&file, source).expect("written");
    let include = Path::new(HEADER).parent().expect("a folder");
    let compiler = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-I"])
        .args([include, &file])
        .arg("-o")
        .arg(&program)
        .output();
    let Ok(compiler) = compiler else {
        println!("skipped: there is no C compiler `cc`");
        return;
    };
    assert!(
        compiler.status.success(),
        "{}",
        String::from_utf8_lossy(&compiler.stderr)
    );
    let said = Command::new(&program).output().expect("it runs");
    assert_eq!(String::from_utf8_lossy(&said.stdout), expected);
}

#[test]
fn the_header_is_cxx_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("plugin.cpp");
    std::fs::write(
        &file,
        "#include \"hlrc_pass.h\"\nint main() { return HLRC_OK; }\n",
    )
    .expect("written");
    let include = Path::new(HEADER).parent().expect("a folder");
    let compiler = Command::new("c++")
        .args(["-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I"])
        .args([include, &file])
        .output();
    let Ok(compiler) = compiler else {
        println!("skipped: there is no C++ compiler `c++`");
        return;
    };
    assert!(
        compiler.status.success(),
        "{}",
        String::from_utf8_lossy(&compiler.stderr)
    );
}

#[test]
fn the_first_fields_stay_where_they_are() {
    // What every version reads before it knows the other's.
    assert_eq!(offset_of!(HlrcPlugin, size), 0);
    assert_eq!(offset_of!(HlrcPlugin, abi_major), size_of::<usize>());
    assert_eq!(offset_of!(HlrcPlugin, abi_minor), size_of::<usize>() + 4);
    assert_eq!(offset_of!(HlrcHost, size), 0);
    assert_eq!(offset_of!(HlrcHost, abi_major), size_of::<usize>());
    assert_eq!(offset_of!(HlrcHost, abi_minor), size_of::<usize>() + 4);
}
