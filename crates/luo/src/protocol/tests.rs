use super::*;

fn interface(text: &str) -> zlink_idl::Interface<'_> {
    zlink_idl::Interface::try_from(text).expect("the definition is valid Varlink")
}

#[test]
fn definitions_are_valid_varlink() {
    assert_eq!(interface(MANAGER_IDL).name(), MANAGER);
    assert_eq!(interface(SESSION_IDL).name(), SESSION);
}

#[test]
fn calls_without_parameters_are_read() {
    let call: Call<'_, Nothing> = serde_json::from_str(r#"{"method":"io.luo.GetStatus"}"#).unwrap();
    assert_eq!(call.method, "io.luo.GetStatus");
    assert!(!call.more && !call.oneway);
}

#[test]
fn unknown_fields_are_ignored() {
    let text = r#"{"count":1,"colour":"red"}"#;
    let preserve: Preserve = serde_json::from_str(text).unwrap();
    assert_eq!(preserve.count, 1);
    assert!(preserve.tokens.is_none());
}

#[test]
fn tokens_above_the_signed_range_go_through() {
    let text =
        serde_json::to_string(&Retrieved { tokens: vec![u64::MAX], refused: vec![] }).unwrap();
    let back: Retrieved = serde_json::from_str(&text).unwrap();
    assert_eq!(back.tokens, [u64::MAX]);
}
