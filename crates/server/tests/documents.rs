//! What the documents say is what the code does.

use lapidary_server::fields::{Support, Table};
use lapidary_server::reference::{DIALECTS, document};
use serde_json::Value;
use std::collections::BTreeSet;

#[test]
fn the_tables_of_the_page_are_those_of_the_code() {
    let page = format!("{}/../../docs/serving.md", env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(&page).unwrap();
    let (_, tables) = page
        .split_once("<!-- made by: cargo run -p lapidary-server --example fields -->\n")
        .unwrap();
    assert!(tables == document(), "the tables are old: make them anew with the command above them");
}

/// A schema, through references and options.
fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    if let Some(name) = schema["$ref"].as_str() {
        return resolve(document, document.pointer(&name[1..]).unwrap());
    }
    let some = |s: &&Value| s["type"] != "null";
    for list in ["oneOf", "anyOf"] {
        if let Some(one) = schema[list].as_array().and_then(|l| l.iter().find(some)) {
            return resolve(document, one);
        }
    }
    schema
}

fn accepted(table: Table) -> BTreeSet<&'static str> {
    table.iter().filter(|f| f.support != Support::Refused).map(|f| f.name).collect()
}

#[test]
fn every_accepted_field_is_decoded_and_the_other_way_round() {
    let document = serde_json::to_value(lapidary_server::openapi::document()).unwrap();
    for endpoint in DIALECTS.iter().flat_map(|d| d.1) {
        let schema = &document["components"]["schemas"][endpoint.schema];
        let decoded: BTreeSet<&str> =
            schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(decoded, accepted(endpoint.table), "{}", endpoint.path);
        for field in endpoint.table {
            if let (Some(inside), Some(schema)) =
                (field.inside, schema["properties"].get(field.name))
            {
                let inner = resolve(&document, schema);
                let Some(properties) = inner["properties"].as_object() else { continue };
                let decoded: BTreeSet<&str> = properties.keys().map(String::as_str).collect();
                assert_eq!(decoded, accepted(inside), "{} {}", endpoint.path, field.name);
            }
        }
    }
}

#[test]
fn every_path_of_the_document_says_what_it_answers() {
    let document = serde_json::to_value(lapidary_server::openapi::document()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() >= 27, "{}", paths.len());
    for endpoint in DIALECTS.iter().flat_map(|d| d.1) {
        assert!(paths.contains_key(endpoint.path), "{}", endpoint.path);
    }
    for method in ["generateContent", "countTokens", "embedContent", "batchEmbedContents"] {
        let path = format!("/v1/models/{{model}}:{method}");
        assert!(paths[&path]["post"].is_object(), "{path}");
    }
    for (path, methods) in paths {
        for (method, operation) in methods.as_object().unwrap() {
            let responses = operation["responses"].as_object().unwrap();
            assert!(responses.contains_key("200"), "{method} {path}");
            for field in ["summary", "tags", "operationId"] {
                assert!(!operation[field].is_null(), "{method} {path} has no {field}");
            }
        }
    }
    let ids: Vec<&str> = (paths.values().flat_map(|m| m.as_object().unwrap().values()))
        .map(|o| o["operationId"].as_str().unwrap())
        .collect();
    let distinct: BTreeSet<&str> = ids.iter().copied().collect();
    assert_eq!(distinct.len(), ids.len(), "operation ids must differ: {ids:?}");
}
