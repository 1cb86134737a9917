//! Gemma 4's turns: `<|turn>role`, thoughts, tools, media.

use super::{Message, RenderOptions};
use serde_json::{Map, Value};

/// How a string is quoted.
const QUOTE: &str = "<|\"|>";

/// Writes a conversation down. `empty_thought`: without thinking, the model's turn begins with an
/// empty thought (12B and larger).
pub(super) fn render(
    messages: &[Message],
    options: &RenderOptions,
    empty_thought: bool,
) -> Result<String, String> {
    let thinking = truthy(options.extra.get("enable_thinking"));
    let tools = options.tools.as_ref().and_then(Value::as_array).filter(|t| !t.is_empty());
    let system = messages.first().filter(|m| matches!(m.role.as_str(), "system" | "developer"));
    let mut out = options.bos.to_owned();
    if thinking || tools.is_some() || system.is_some() {
        out += "<|turn>system\n";
        if thinking {
            out += "<|think|>\n";
        }
        if let Some(system) = system {
            out += &system_text(system)?;
        }
        for tool in tools.into_iter().flatten() {
            out += &format!("<|tool>{}<tool|>", declaration(tool)?);
        }
        out += "<turn|>\n";
    }
    let turns = &messages[usize::from(system.is_some())..];
    let last_user = turns.iter().rposition(|m| m.role == "user");
    let mut previous: Option<&str> = None;
    let mut end = End::Text;
    for (i, m) in turns.iter().enumerate().filter(|(_, m)| m.role != "tool") {
        let think = last_user.is_none_or(|u| i > u)
            || truthy(options.extra.get("preserve_thinking")) && calls(m).is_some();
        end = turn(&mut out, turns, i, think, previous)?;
        previous = Some(&m.role);
    }
    if options.add_generation_prompt {
        match end {
            End::Text => {
                out += "<|turn>model\n";
                if empty_thought && !thinking {
                    out += "<|channel>thought\n<channel|>";
                }
            }
            End::Response if thinking => out += "<|channel>thought\n",
            End::Response | End::Call => {}
        }
    }
    Ok(out)
}

/// What a turn ended with.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Text,
    Call,
    Response,
}

fn turn(
    out: &mut String,
    turns: &[Message],
    i: usize,
    think: bool,
    previous: Option<&str>,
) -> Result<End, String> {
    let m = &turns[i];
    let role = if m.role == "assistant" { "model" } else { &m.role };
    if !(role == "model" && previous == Some("assistant")) {
        *out += &format!("<|turn>{role}\n");
    }
    let thought = ["reasoning", "reasoning_content"].iter().filter_map(|k| m.extra.get(*k));
    let thought = thought.filter_map(Value::as_str).find(|t| !t.is_empty());
    if let (Some(thought), true) = (thought, think) {
        *out += &format!("<|channel>thought\n{thought}\n<channel|>");
    }
    let mut end = End::Text;
    let mut answered = false;
    if let Some(calls) = calls(m) {
        for call in calls {
            *out += &call_text(call)?;
        }
        end = End::Call;
        for answer in turns[i + 1..].iter().take_while(|t| t.role == "tool") {
            *out += &response(answer, calls)?;
            answered = true;
            end = End::Response;
        }
    }
    let content = content(m, role == "model")?;
    *out += &content;
    let next = turns[i + 1..].iter().find(|t| t.role != "tool").map(|t| t.role.as_str());
    let goes_on = role == "model" && next == Some("assistant") && (calls(m).is_none() || answered);
    if end == End::Call {
        *out += "<|tool_response>";
    } else if !(goes_on || answered && content.trim().is_empty() && next.is_none()) {
        *out += "<turn|>\n";
    }
    Ok(end)
}

fn truthy(value: Option<&Value>) -> bool {
    value.is_some_and(|v| v.as_bool().unwrap_or(!v.is_null()))
}

fn calls(m: &Message) -> Option<&Vec<Value>> {
    m.extra.get("tool_calls").and_then(Value::as_array).filter(|c| !c.is_empty())
}

fn system_text(m: &Message) -> Result<String, String> {
    match &m.content {
        Value::Array(parts) => parts
            .iter()
            .map(|p| Ok(text_of(p)?.trim().to_owned() + " "))
            .collect::<Result<_, String>>(),
        _ => Ok(m.text()?.trim().to_owned()),
    }
}

fn text_of(part: &Value) -> Result<&str, String> {
    part["text"].as_str().ok_or_else(|| format!("a part without text: {part}"))
}

/// The content of a turn; thoughts in a model's are taken out.
fn content(m: &Message, model: bool) -> Result<String, String> {
    let text = |t: &str| if model { without_thoughts(t) } else { t.trim().to_owned() };
    match &m.content {
        Value::Null => Ok(String::new()),
        Value::String(s) => Ok(text(s)),
        Value::Array(parts) => parts
            .iter()
            .map(|p| match p["type"].as_str() {
                Some("text") => Ok(text(text_of(p)?)),
                Some("image" | "image_url") => Ok("<|image|>".to_owned()),
                Some("audio" | "input_audio") => Ok("<|audio|>".to_owned()),
                Some("video") => Ok("<|video|>".to_owned()),
                _ => Err(format!("a part of an unknown type: {p}")),
            })
            .collect(),
        _ => Err(format!("the content of a {} turn is neither text nor parts", m.role)),
    }
}

fn without_thoughts(text: &str) -> String {
    let parts = text.split("<channel|>").map(|part| part.split("<|channel>").next().unwrap_or(""));
    parts.collect::<String>().trim().to_owned()
}

fn call_text(call: &Value) -> Result<String, String> {
    let function = &call["function"];
    let name = function["name"].as_str().ok_or("a tool call without a name")?;
    let arguments = match &function["arguments"] {
        Value::Object(o) => fields(o, false),
        Value::Null => String::new(),
        _ => return Err(format!("the arguments of the call of {name} are no JSON object")),
    };
    Ok(format!("<|tool_call>call:{name}{{{arguments}}}<tool_call|>"))
}

fn response(m: &Message, calls: &[Value]) -> Result<String, String> {
    let id = m.extra.get("tool_call_id");
    let called = calls.iter().rev().find(|c| id.is_some() && c.get("id") == id);
    let name = called.map(|c| &c["function"]["name"]).or(m.extra.get("name"));
    let name = name.and_then(Value::as_str).unwrap_or("unknown");
    let (body, media) = match &m.content {
        Value::Object(o) => (fields(o, false), String::new()),
        Value::Array(_) => {
            let (texts, media): (Vec<&Value>, Vec<&Value>) =
                m.content.as_array().into_iter().flatten().partition(|p| p["type"] == "text");
            let text: String = texts.into_iter().map(text_of).collect::<Result<_, _>>()?;
            let media = media.into_iter().cloned().collect();
            let media = content(&Message { content: Value::Array(media), ..m.clone() }, false)?;
            (format!("value:{QUOTE}{text}{QUOTE}"), media)
        }
        other => (format!("value:{}", argument(other, false)), String::new()),
    };
    Ok(format!("<|tool_response>response:{name}{{{body}}}<tool_response|>{media}"))
}

/// `key:value` pairs in the order of their keys, whatever the case.
fn fields(o: &Map<String, Value>, quoted: bool) -> String {
    let write = |(k, v): (&String, &Value)| match quoted {
        true => format!("{QUOTE}{k}{QUOTE}:{}", argument(v, quoted)),
        false => format!("{k}:{}", argument(v, quoted)),
    };
    sorted(o).into_iter().map(write).collect::<Vec<_>>().join(",")
}

fn sorted(o: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut all: Vec<_> = o.iter().collect();
    all.sort_by_key(|(k, _)| k.to_lowercase());
    all
}

fn argument(v: &Value, quoted: bool) -> String {
    match v {
        Value::String(s) => format!("{QUOTE}{s}{QUOTE}"),
        Value::Object(o) => format!("{{{}}}", fields(o, quoted)),
        Value::Array(a) => {
            let all: Vec<String> = a.iter().map(|v| argument(v, quoted)).collect();
            format!("[{}]", all.join(","))
        }
        other => other.to_string(),
    }
}

fn quoted(v: &Value) -> String {
    format!("{QUOTE}{}{QUOTE}", v.as_str().unwrap_or_default())
}

fn upper(v: &Value) -> String {
    v.as_str().unwrap_or_default().to_uppercase()
}

fn required(v: &Value) -> Option<String> {
    let all = v["required"].as_array().filter(|r| !r.is_empty())?;
    Some(format!("required:[{}]", all.iter().map(quoted).collect::<Vec<_>>().join(",")))
}

fn declaration(tool: &Value) -> Result<String, String> {
    let f = &tool["function"];
    let name = f["name"].as_str().ok_or_else(|| format!("a tool without a name: {tool}"))?;
    let mut out = format!("declaration:{name}{{description:{}", quoted(&f["description"]));
    if let Some(parameters) = f["parameters"].as_object().filter(|p| !p.is_empty()) {
        let mut parts = Vec::new();
        let described = parameters.get("properties").and_then(Value::as_object);
        if let Some(p) = described.filter(|p| !p.is_empty()) {
            parts.push(format!("properties:{{{}}}", properties(p, false)));
        }
        parts.extend(required(&f["parameters"]));
        parts.push(format!("type:{QUOTE}{}{QUOTE}", upper(&f["parameters"]["type"])));
        out += &format!(",parameters:{{{}}}", parts.join(","));
    }
    if let Some(response) = f.get("response") {
        out += ",response:{";
        if response["description"].is_string() {
            out += &format!("description:{},", quoted(&response["description"]));
        }
        if upper(&response["type"]) == "OBJECT" {
            out += &format!("type:{QUOTE}OBJECT{QUOTE}}}");
        }
    }
    Ok(out + "}")
}

/// Parameters by name; where an object's own fields are taken for lack of `properties`, those that
/// describe it are not.
fn properties(p: &Map<String, Value>, nested: bool) -> String {
    let own = ["description", "type", "properties", "required", "nullable"];
    let all = sorted(p).into_iter().filter(|(k, _)| !(nested && own.contains(&k.as_str())));
    all.map(|(k, v)| format!("{k}:{{{}}}", property(v))).collect::<Vec<_>>().join(",")
}

fn property(v: &Value) -> String {
    let kind = upper(&v["type"]);
    let mut parts = Vec::new();
    if v["description"].as_str().is_some_and(|d| !d.is_empty()) {
        parts.push(format!("description:{}", quoted(&v["description"])));
    }
    if kind == "STRING" && v["enum"].as_array().is_some_and(|e| !e.is_empty()) {
        parts.push(format!("enum:{}", argument(&v["enum"], true)));
    }
    if let (true, Some(items)) = (kind == "ARRAY", v["items"].as_object().filter(|i| !i.is_empty()))
    {
        parts.push(format!("items:{{{}}}", array_items(items)));
    }
    if truthy(v.get("nullable")) {
        parts.push("nullable:true".into());
    }
    if kind == "OBJECT" {
        match v["properties"].as_object() {
            Some(p) => parts.push(format!("properties:{{{}}}", properties(p, false))),
            None => {
                let own = v.as_object().map(|o| properties(o, true)).unwrap_or_default();
                parts.push(format!("properties:{{{own}}}"));
            }
        }
        parts.extend(required(v));
    }
    parts.push(format!("type:{QUOTE}{kind}{QUOTE}"));
    parts.join(",")
}

fn array_items(items: &Map<String, Value>) -> String {
    let all = sorted(items).into_iter().filter(|(_, v)| !v.is_null());
    let write = |(k, v): (&String, &Value)| match k.as_str() {
        "properties" => {
            format!(
                "properties:{{{}}}",
                v.as_object().map_or(String::new(), |p| properties(p, false))
            )
        }
        "required" => {
            let names = v.as_array().into_iter().flatten().map(quoted).collect::<Vec<_>>();
            format!("required:[{}]", names.join(","))
        }
        "type" => match v {
            Value::Array(kinds) => {
                let kinds: Value = kinds.iter().map(upper).collect::<Vec<_>>().into();
                format!("type:{}", argument(&kinds, true))
            }
            one => format!("type:{QUOTE}{}{QUOTE}", upper(one)),
        },
        _ => format!("{k}:{}", argument(v, true)),
    };
    all.map(write).collect::<Vec<_>>().join(",")
}
