//! The wire: every name is commented, and no change of it goes unseen.
//!
//! The snapshot lists each service, method, message, field and enum value with its number. A line that changes or goes
//! away breaks clients in the field; a new line does not. After a change that is meant: `INSTA_UPDATE=always cargo test
//! -p regent-tests --test tidy wire`, and look at the difference.

use std::collections::BTreeSet;

use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};

use super::no_complaints;

fn our_files() -> Vec<FileDescriptorProto> {
    let set = FileDescriptorSet::decode(regent_proto::DESCRIPTORS).unwrap();
    let ours: Vec<_> = set.file.into_iter().filter(|file| file.package().starts_with("regent.")).collect();
    assert_eq!(ours.len(), 3, "types, agent and coordinator");
    ours
}

fn field_line(field: &FieldDescriptorProto, message: &DescriptorProto) -> String {
    let label = match field.label() {
        Label::Repeated => "repeated ",
        Label::Required => "required ",
        Label::Optional if field.proto3_optional() => "optional ",
        Label::Optional => "",
    };
    let kind = match field.r#type() {
        Type::Message | Type::Enum | Type::Group => field.type_name().to_owned(),
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    };
    let oneof = match field.oneof_index {
        Some(index) if !field.proto3_optional() => {
            let index = usize::try_from(index).expect("an index is not negative");
            format!(" (oneof {})", message.oneof_decl[index].name())
        }
        Some(_) | None => String::new(),
    };
    format!("{} = {} {label}{kind}{oneof}", field.name(), field.number())
}

fn message_lines(prefix: &str, message: &DescriptorProto, lines: &mut Vec<String>) {
    let name = format!("{prefix}.{}", message.name());
    lines.push(format!("message {name}"));
    lines.extend(message.field.iter().map(|field| format!("  {}", field_line(field, message))));
    for range in &message.reserved_range {
        lines.push(format!("  reserved {}..{}", range.start(), range.end()));
    }
    message.nested_type.iter().for_each(|nested| message_lines(&name, nested, lines));
    message.enum_type.iter().for_each(|nested| enum_lines(&name, nested, lines));
}

fn enum_lines(prefix: &str, values: &EnumDescriptorProto, lines: &mut Vec<String>) {
    lines.push(format!("enum {prefix}.{}", values.name()));
    lines.extend(values.value.iter().map(|value| format!("  {} = {}", value.name(), value.number())));
}

#[test]
fn the_wire_is_as_recorded() {
    let mut lines = Vec::new();
    for file in our_files() {
        let package = file.package();
        for service in &file.service {
            lines.push(format!("service {package}.{}", service.name()));
            for method in &service.method {
                let stream = |streaming| if streaming { "stream " } else { "" };
                lines.push(format!(
                    "  {}({}{}) returns ({}{})",
                    method.name(),
                    stream(method.client_streaming()),
                    method.input_type(),
                    stream(method.server_streaming()),
                    method.output_type()
                ));
            }
        }
        file.message_type.iter().for_each(|message| message_lines(package, message, &mut lines));
        file.enum_type.iter().for_each(|values| enum_lines(package, values, &mut lines));
    }
    insta::assert_snapshot!("wire", lines.join("\n"));
}

#[test]
fn everything_on_the_wire_is_commented() {
    let mut silent = Vec::new();
    for file in our_files() {
        let info = file.source_code_info.clone().expect("the descriptor set carries comments");
        let commented: BTreeSet<Vec<i32>> =
            info.location.iter().filter(|l| !l.leading_comments().trim().is_empty()).map(|l| l.path.clone()).collect();
        let mut check = |path: &[i32], name: &str| {
            if !commented.contains(path) {
                silent.push(format!("{}: {name}", file.name()));
            }
        };
        // Field numbers of descriptor.proto: file.message 4, file.enum 5, file.service 6; message.field 2,
        // message.oneof 8; enum.value 2; service.method 2.
        for (s, service) in (0..).zip(&file.service) {
            check(&[6, s], service.name());
            (0..).zip(&service.method).for_each(|(m, method)| check(&[6, s, 2, m], method.name()));
        }
        for (m, message) in (0..).zip(&file.message_type) {
            check(&[4, m], message.name());
            for (f, field) in (0..).zip(&message.field) {
                check(&[4, m, 2, f], &format!("{}.{}", message.name(), field.name()));
            }
        }
        for (e, values) in (0..).zip(&file.enum_type) {
            check(&[5, e], values.name());
            (0..).zip(&values.value).for_each(|(v, value)| check(&[5, e, 2, v], value.name()));
        }
    }
    no_complaints("every service, method, message, field, enum and value has a comment", &silent);
}

#[test]
fn every_package_is_named_after_its_folder() {
    for file in our_files() {
        let folder = file.name().rsplit_once('/').expect("in a folder").0.replace('/', ".");
        assert_eq!(folder, file.package(), "{}", file.name());
        assert!(file.options.as_ref().is_some_and(|o| o.go_package.is_some()), "{} has no go_package", file.name());
    }
}
