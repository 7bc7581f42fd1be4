//! Compares the verbs ABI that `sojourn-fabric` has checked in with this system's headers.
//!
//! Two witnesses: `rdma-sys`, whose bindings are generated from the headers by libclang, and the
//! C compiler itself. The second is there because `rdma-sys` writes the structs that hold unions
//! by hand (`ibv_send_wr`, `ibv_wc` and a few more), and is silent about sizes of fields and
//! about enumerations without a name.
//!
//! Prints each mismatch, then counts; ends with status 1 if there is any. Run by `hw-tests/run`.

mod layouts;

use sojourn_fabric::abi;
use std::collections::HashMap;
use std::error::Error;
use std::io::Write;
use std::process::{Command, ExitCode, Stdio};
use std::{env, fs};

/// An integer constant.
struct Constant {
    name: &'static str,
    /// Its name in C.
    c: &'static str,
    ours: u64,
    rdma_sys: Option<u64>,
}

include!(concat!(env!("OUT_DIR"), "/lists.rs"));

/// Types of `fabric::abi` with no layout of their own to compare, and why.
const NOT_COMPARED: &[(&str, &str)] = &[
    ("ImmOrKey", "a union inside SendWr, compared there"),
    ("WrTarget", "a union inside SendWr, compared there"),
    ("BindOrTso", "a union inside SendWr, compared there"),
    ("AsyncElement", "a union inside AsyncEvent, compared there"),
    ("ExtendedOp", "not C"),
    ("Verbs", "not C"),
];

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let layouts = layouts::all();
    let mut findings = Vec::new();
    for name in TYPES {
        let listed = layouts.iter().any(|layout| layout.name == *name);
        if !listed && !NOT_COMPARED.iter().any(|(not, _)| not == name) {
            findings.push(format!("{name} is not compared: add it to layouts.rs"));
        }
    }

    let c = ask_compiler(&layouts)?;
    let mut compare = |what: &str, ours: u64, question: &str, rdma_sys: Option<u64>| {
        let c = c.get(question).copied();
        if c != Some(ours) || rdma_sys.is_some_and(|theirs| theirs != ours) {
            findings.push(format!("{what}: {ours} here, {c:?} in C, {rdma_sys:?} in rdma-sys"));
        }
    };
    let mut fields = 0;
    for layout in &layouts {
        let size = Some(layout.rdma_sys as u64);
        let what = format!("size of {}", layout.name);
        compare(&what, layout.ours as u64, &size_question(layout), size);
        for field in &layout.fields {
            fields += 1;
            let name = format!("{}.{}", layout.name, field.name);
            let [offset, size] = field_questions(layout, field);
            let theirs = Some(field.rdma_sys as u64);
            compare(&format!("offset of {name}"), field.ours as u64, &offset, theirs);
            compare(&format!("size of {name}"), field.size as u64, &size, None);
        }
    }
    for constant in CONSTANTS {
        compare(constant.name, constant.ours, constant.c, constant.rdma_sys);
    }

    for finding in &findings {
        println!("{finding}");
    }
    println!(
        "{} structs, {fields} fields and {} constants compared with rdma-sys and the C compiler: \
         {} mismatches",
        layouts.len(),
        CONSTANTS.len(),
        findings.len()
    );
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn size_question(layout: &layouts::Layout) -> String {
    format!("sizeof({})", layout.c)
}

fn field_questions(layout: &layouts::Layout, field: &layouts::Field) -> [String; 2] {
    [
        format!("__builtin_offsetof({}, {})", layout.c, field.c),
        format!("sizeof((({} *)0)->{})", layout.c, field.c),
    ]
}

/// What the C compiler answers to every question, each a constant expression.
fn ask_compiler(layouts: &[layouts::Layout]) -> Result<HashMap<String, u64>, Box<dyn Error>> {
    let mut questions: Vec<String> = CONSTANTS.iter().map(|each| each.c.to_string()).collect();
    for layout in layouts {
        questions.push(size_question(layout));
        questions.extend(layout.fields.iter().flat_map(|field| field_questions(layout, field)));
    }
    let mut source = String::from("#include <infiniband/verbs.h>\n#include <stdio.h>\n");
    source += "int main(void) {\n";
    for question in &questions {
        source += &format!("    printf(\"%llu\\n\", (unsigned long long)({question}));\n");
    }
    source += "    return 0;\n}\n";

    let program = env::current_exe()?.with_extension("c-answers");
    let mut compiler = Command::new("cc")
        .args(["-x", "c", "-", "-o"])
        .arg(&program)
        .stdin(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cc cannot be run: {error}; install gcc"))?;
    compiler.stdin.take().expect("it is piped").write_all(source.as_bytes())?;
    if !compiler.wait()?.success() {
        return Err("the headers lack something that fabric::abi has; cc says what".into());
    }
    let answers = Command::new(&program).output();
    fs::remove_file(&program)?;
    let answers = String::from_utf8(answers?.stdout)?;
    let values = answers.lines().map(str::parse).collect::<Result<Vec<u64>, _>>()?;
    if values.len() != questions.len() {
        return Err("the C program did not answer every question".into());
    }
    Ok(questions.into_iter().zip(values).collect())
}
