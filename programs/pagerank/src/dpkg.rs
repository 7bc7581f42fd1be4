//! The dependency graph of the packages that are installed on a Debian system.
//!
//! A package points to what satisfies each of its `Depends` and `Pre-Depends`: the first of
//! `a | b` that is installed, by its own name or by `Provides`. Versions and architectures are
//! not looked at, since dpkg saw to them when it installed the package.

use crate::graph::Graph;
use std::collections::BTreeMap;

/// Where dpkg keeps them.
pub(crate) const STATUS: &str = "/var/lib/dpkg/status";

/// The fields of an installed package that matter here.
struct Package<'a> {
    name: &'a str,
    depends: Vec<&'a str>,
    provides: Vec<&'a str>,
}

/// Reads the format of [`STATUS`]: paragraphs of `Field: value` lines, where a line that begins
/// with white space continues the one above.
pub(crate) fn parse(text: &str) -> Result<Graph, String> {
    let packages = packages(text)?;
    // What is installed under a name: the package itself, else the first that provides it.
    let mut installed: BTreeMap<&str, &str> = BTreeMap::new();
    for package in &packages {
        for name in package.provides.iter().flat_map(|value| alternatives(value)).flatten() {
            let first = installed.entry(name).or_insert(package.name);
            *first = (*first).min(package.name);
        }
    }
    installed.extend(packages.iter().map(|package| (package.name, package.name)));
    let mut edges = Vec::new();
    for package in &packages {
        for choice in package.depends.iter().flat_map(|value| alternatives(value)) {
            if let Some(to) = choice.into_iter().find_map(|name| installed.get(name)) {
                edges.push((package.name, *to));
            }
        }
    }
    Graph::from_names(edges.iter().copied(), packages.iter().map(|package| package.name))
}

fn packages(text: &str) -> Result<Vec<Package<'_>>, String> {
    let mut packages = Vec::new();
    // Paragraphs are gathered line by line, so that an error can name its line.
    let mut fields: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut field = None;
    for (number, line) in text.lines().chain([""]).enumerate() {
        if line.is_empty() {
            packages.extend(package(&std::mem::take(&mut fields)));
            field = None;
        } else if line.starts_with([' ', '\t']) {
            let name = field.ok_or_else(|| format!("line {} continues no field", number + 1))?;
            fields.entry(name).or_default().push(line.trim());
        } else {
            let Some((name, value)) = line.split_once(':') else {
                return Err(format!("line {} is not \"Field: value\"", number + 1));
            };
            field = Some(name);
            fields.insert(name, vec![value.trim()]);
        }
    }
    Ok(packages)
}

/// The package of a paragraph, where it is installed.
fn package<'a>(fields: &BTreeMap<&'a str, Vec<&'a str>>) -> Option<Package<'a>> {
    let lines = |name: &str| fields.get(name).into_iter().flatten().copied();
    let name = lines("Package").next()?;
    let installed = lines("Status").next()?.ends_with(" installed");
    installed.then(|| Package {
        name,
        depends: lines("Depends").chain(lines("Pre-Depends")).collect(),
        provides: lines("Provides").collect(),
    })
}

/// The names in `a (>= 1), b:any | c [amd64]`: for each comma, those that `|` separates.
fn alternatives(value: &str) -> impl Iterator<Item = Vec<&str>> {
    let name = |word: &'_ str| word.find([' ', '(', ':', '[', '<']).unwrap_or(word.len());
    value.split(',').map(move |choice| {
        let words = choice.split('|').map(str::trim);
        words.map(|word| &word[..name(word)]).filter(|word| !word.is_empty()).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SMALL: &str = "\
Package: shell
Status: install ok installed
Pre-Depends: libc6 (>= 2.36)
Depends: debconf (>= 0.5) | cdebconf,
 missing | libtinfo6:any [amd64]
Description: a shell
 that continues: with a colon

Package: libc6
Status: install ok installed
Depends: libgcc-s1

Package: gone
Status: deinstall ok config-files
Depends: libc6

Package: cdebconf
Status: hold ok installed
Provides: debconf-2.0, debconf (= 1)

Package: libtinfo6
Status: install ok installed
Depends: libc6, awk

Package: mawk
Status: install ok installed
Provides: awk

Package: gawk
Status: install ok installed
Provides: awk
";

    #[test]
    fn dependencies_lead_to_what_satisfies_them() {
        let graph = parse(SMALL).unwrap();
        let name = |node: u32| graph.names[node as usize].as_str();
        let edges: Vec<_> = graph.edges.iter().map(|(from, to)| (name(*from), name(*to))).collect();
        assert_eq!(graph.names, ["cdebconf", "gawk", "libc6", "libtinfo6", "mawk", "shell"]);
        assert_eq!(
            edges,
            [
                ("libtinfo6", "gawk"),
                ("libtinfo6", "libc6"),
                ("shell", "cdebconf"),
                ("shell", "libc6"),
                ("shell", "libtinfo6"),
            ]
        );
    }

    #[test]
    fn a_line_that_is_no_field_is_named() {
        assert_eq!(parse("Package: a\nnonsense\n").unwrap_err(), "line 2 is not \"Field: value\"");
        assert_eq!(parse(" continued\n").unwrap_err(), "line 1 continues no field");
        assert_eq!(parse("").unwrap_err(), "the graph has no nodes");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(
            text in "((Package|Status|Depends|Provides|x)?[:, \n\ta-cé|()<\\[]*(installed)?\n){0,8}",
        ) {
            let _ = parse(&text);
        }
    }
}
