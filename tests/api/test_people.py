"""People over HTTP."""

from tests.harness import House, expect


def test_a_person_with_a_role_signs_in_and_steps_up(house: House) -> None:
    """The harness and the happy path at once (USR-01, SIG-01)."""
    house.register_study()
    doctor = house.person("investigator")
    me = expect(doctor.get("/v1/me"), 200)
    assert me["grants"] == [{"role": "investigator", "study_code": "NCT03033277", "site_code": "01"}]
    assert me["acr"] == "pwd"
    elevated = expect(doctor.get("/v1/me", step_up=True), 200)
    assert elevated["acr"] == "mfa"
    edc = house.machine()
    assert expect(edc.get("/v1/me"), 200)["acr"] == "client"
