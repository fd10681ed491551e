"""Settings of `--launcher tpu`, and the manifests for GKE: as recorded, as published schemas allow, as policies say."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jsonschema
import pytest
import yaml

from scaling import config, devices
from scaling.launch import fetch, launcher
from scaling.launch.launchers import tpu
from scaling.launch.launchers.tpu import gke, slices
from scaling.store import layout
from tests.launch import golden

SCHEMA = json.loads((Path(__file__).parent / "schemas" / "jobset.json").read_text())
KINDS = {"JobSet": "jobset.v1alpha2.JobSet", "ConfigMap": "io.k8s.api.core.v1.ConfigMap"}
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def job(**changes: Any) -> launcher.Job:
    plain: dict[str, Any] = {"secrets": (), "config_path": None}
    return dataclasses.replace(golden.JOB, **{**plain, **changes})


def load(*settings: str) -> tpu.Tpu:
    loaded = launcher.load("tpu", settings)
    assert isinstance(loaded, tpu.Tpu)
    return loaded


def on_gke(*settings: str, accelerator: str = "v5litepod-16") -> tpu.Tpu:
    return load("system=gke", f"accelerator={accelerator}", "image=europe-docker.pkg.dev/p/r/scaling:tpu", *settings)


def documents(settings: tpu.Tpu, asked: launcher.Job) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(settings.files(asked)["jobset.yaml"]))


def jobsets(settings: tpu.Tpu, asked: launcher.Job) -> list[dict[str, Any]]:
    return [each for each in documents(settings, asked) if each["kind"] == "JobSet"]


def pod(jobset: dict[str, Any]) -> dict[str, Any]:
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def check_schema(document: dict[str, Any]) -> None:
    validator = jsonschema.Draft202012Validator(
        {"$ref": f"#/$defs/{KINDS[document['kind']]}", "$defs": SCHEMA["$defs"]}
    )
    validator.validate(document)


# The manifest


def test_the_manifest_is_the_recorded_one() -> None:
    text = golden.GKE.files(golden.JOB)["jobset.yaml"]
    golden.compare("jobset.yaml", text)
    assert golden.GKE.describe(golden.JOB) == f"# ==> launch/isoflop.v2/jobset.yaml\n{text}"


@pytest.mark.parametrize("accelerator", [each.accelerator for each in slices.SLICES])
@pytest.mark.parametrize(
    "settings", [(), ("spot=false", "queue=tpu", "secret=wandb", "service_account=scaling", "text=gs://bucket/x")]
)
def test_manifests_are_what_the_published_schemas_allow(accelerator: str, settings: tuple[str, ...]) -> None:
    secrets = ("WANDB_API_KEY",) if settings else ()
    asked = job(mesh=config.Mesh(), secrets=secrets, config_path=golden.CONFIG if settings else None)
    made = documents(on_gke(*settings, accelerator=accelerator), asked)
    assert [each["kind"] for each in made] == ["ConfigMap"] * bool(settings) + ["JobSet"] * 2
    for each in made:
        check_schema(each)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("spec", "failurePolicy", "rules", 0, "action"), "Restart"),
        (("spec", "failurePolicy", "rules", 0, "onExitCodes"), [2]),
        (("spec", "replicatedJobs", 0, "replica"), 1),
        (("spec", "replicatedJobs", 0, "template", "spec", "completions"), "4"),
        (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "nodeSelectors"), {}),
        (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers", 0, "env", 0, "value"), 1),
    ],
)
def test_the_schema_refuses_what_is_wrong(place: tuple[str | int, ...], value: Any) -> None:
    jobset = jobsets(golden.GKE, golden.JOB)[0]
    inner: Any = jobset
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check_schema(jobset)


def failure(jobset: dict[str, Any], code: int | None, conditions: tuple[str, ...] = ()) -> str:
    """What JobSet does where a pod ends with a code, by the documented rules of Jobs and of JobSet.

    kubernetes.io/docs/concepts/workloads/controllers/job (pod failure policy: the first rule that matches; the message
    of pkg/controller/job/pod_failure_policy.go) and jobset.sigs.k8s.io (failure policy: the first rule that matches,
    else RestartJobSet).
    """
    spec = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    assert spec["backoffLimit"] == 0
    for index, rule in enumerate(spec["podFailurePolicy"]["rules"]):
        codes = rule.get("onExitCodes", {"values": []})
        assert codes.get("containerName", "worker") == spec["template"]["spec"]["containers"][0]["name"]
        by_condition = any(each["type"] in conditions for each in rule.get("onPodConditions", []))
        if rule["action"] == "FailJob" and (code in codes["values"] or by_condition):
            reason, message = "PodFailurePolicy", f"Container … failed … matching FailJob rule at index {index}"
            break
    policy = jobset["spec"]["failurePolicy"]
    for rule in policy["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(pattern, message) for pattern in patterns):
            return rule["action"]
    return f"RestartJobSet, at most {policy['maxRestarts']}"


@pytest.mark.parametrize(
    ("code", "conditions", "action"),
    [
        (2, (), "FailJobSet"),
        (75, (), "RestartJobSetAndIgnoreMaxRestarts"),
        (143, (), "RestartJobSetAndIgnoreMaxRestarts"),
        (143, ("DisruptionTarget",), "RestartJobSetAndIgnoreMaxRestarts"),
        (137, ("DisruptionTarget",), "RestartJobSetAndIgnoreMaxRestarts"),  # its node is gone
        (None, ("DisruptionTarget",), "RestartJobSetAndIgnoreMaxRestarts"),
        (137, (), "RestartJobSet, at most 3"),  # out of the host's memory
        (1, (), "RestartJobSet, at most 3"),
    ],
)
def test_what_becomes_of_a_worker_that_ends(code: int | None, conditions: tuple[str, ...], action: str) -> None:
    assert failure(jobsets(golden.GKE, golden.JOB)[0], code, conditions) == action


def test_a_worker_is_a_jobset_of_its_own_with_a_pod_a_host() -> None:
    made = jobsets(on_gke(accelerator="v5litepod-32"), job(mesh=config.Mesh(), workers=3))
    assert len({each["metadata"]["name"] for each in made}) == 3
    for each in made:
        (replicated,) = each["spec"]["replicatedJobs"]
        spec = replicated["template"]["spec"]
        chips = int(spec["template"]["spec"]["containers"][0]["resources"]["limits"]["google.com/tpu"])
        assert (replicated["replicas"], spec["parallelism"], spec["completions"], chips) == (1, 8, 8, 4)
        assert pod(each)["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x8"


@pytest.mark.parametrize(
    ("accelerator", "exclusive"), [("v5litepod-8", False), ("v5litepod-16", True), ("v5p-8", False)]
)
def test_only_slices_of_several_hosts_take_a_node_pool(accelerator: str, exclusive: bool) -> None:
    made = jobsets(on_gke(accelerator=accelerator), job(mesh=config.Mesh()))[0]
    annotations = made["metadata"].get("annotations", {})
    assert ("alpha.jobset.sigs.k8s.io/exclusive-topology" in annotations) is exclusive


def test_spot_is_asked_for_and_can_be_declined() -> None:
    def spot(settings: tpu.Tpu) -> tuple[str | None, list[str]]:
        made = pod(jobsets(settings, job())[0])
        return made["nodeSelector"].get("cloud.google.com/gke-spot"), [each["key"] for each in made["tolerations"]]

    assert spot(on_gke()) == ("true", ["google.com/tpu", "cloud.google.com/gke-spot"])
    assert spot(on_gke("spot=false")) == (None, ["google.com/tpu"])


@pytest.mark.parametrize("secrets", [(), ("WANDB_API_KEY",)])
def test_the_key_of_a_tracker_is_only_named_and_only_where_it_is_needed(secrets: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "very-secret")
    asked = job(secrets=secrets)
    text = on_gke("secret=wandb").describe(asked)
    environment = pod(jobsets(on_gke("secret=wandb"), asked)[0])["containers"][0]["env"]
    keys = [each for each in environment if each["name"] == "WANDB_API_KEY"]
    reference = {"name": "WANDB_API_KEY", "valueFrom": {"secretKeyRef": {"name": "wandb", "key": "WANDB_API_KEY"}}}
    assert keys == [reference] * len(secrets)
    assert "very-secret" not in text


def expanded(word: str) -> str:
    """What Kubernetes makes of a word of a command: a variable's value of $(NAME), and $ of $$."""
    return re.sub(r"\$\$|\$\(\w+\)", lambda found: "$" if found[0] == "$$" else "a variable", word)


@hypothesis.given(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=30), st.text(max_size=80)
)
def test_what_a_user_says_arrives_as_it_was(folder: str, text: str) -> None:
    asked = job(store_path=f"gs://my-bucket/{folder}$(PATH)$")
    command = pod(jobsets(on_gke(), asked)[0])["containers"][0]["command"]
    assert [expanded(word) for word in command][3:6] == ["worker", asked.store_path, asked.sweep_name]
    dumped = yaml.dump({"text": text, "lines": text + "\n" + text}, Dumper=gke._Dumper, allow_unicode=True)
    assert yaml.safe_load(dumped) == {"text": text, "lines": text + "\n" + text}


def test_text_is_copied_before_the_worker_starts_where_it_runs() -> None:
    made = pod(jobsets(on_gke("text=gs://my-bucket/some text"), job())[0])
    fetcher, worker = made["initContainers"][0], made["containers"][0]
    assert fetcher["command"] == ["python", "-m", "scaling.launch.fetch", "gs://my-bucket/some text", "text"]
    assert fetcher["workingDir"] == worker["workingDir"] == worker["volumeMounts"][0]["mountPath"]
    assert fetcher["volumeMounts"][0] == worker["volumeMounts"][0]
    assert "initContainers" not in pod(jobsets(on_gke(), job())[0])


def test_a_folder_is_copied_whole_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "source", tmp_path / "text"
    (source / "inner").mkdir(parents=True)
    (source / "a.txt").write_text("a")
    (source / "inner" / "b.txt").write_text("b")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", lambda source, target: target.write_text(str(1 / 0)))
        with pytest.raises(ZeroDivisionError):
            fetch.fetch(str(source), target)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]  # nothing stays of a copy that was interrupted
    fetch.fetch(str(source), target)
    assert {path.relative_to(target).as_posix(): path.read_text() for path in target.rglob("*.txt")} == {
        "a.txt": "a",
        "inner/b.txt": "b",
    }
    (source / "a.txt").write_text("changed")
    fetch.fetch(str(source), target)
    assert (target / "a.txt").read_text() == "a"
    with pytest.raises(ValueError, match="there is nothing in"):
        fetch.fetch(f"{tmp_path}/nowhere", tmp_path / "other")


# Names

NAMES = st.from_regex(layout.SWEEP_NAME, fullmatch=True)


@hypothesis.given(NAMES, st.sampled_from(slices.SLICES), st.integers(1, tpu.MOST_WORKERS))
@hypothesis.example("Chinchilla.approach_2--" + "x" * 200 + ".", slices.SLICES[-1], 1000)
@hypothesis.example("0", slices.SLICES[0], 1)
@hypothesis.example("a.-_-.", slices.SLICES[0], 1)
@hypothesis.example("x" * 33 + "-y", slices.SLICES[0], 1)
def test_names_are_what_jobset_and_google_cloud_allow(name: str, chosen: slices.TpuSlice, number: int) -> None:
    base = slices.base_name(job(sweep_name=name))
    longest = f"{base}-{number - 1}-slice-0-{chosen.hosts - 1}-abcde"  # a pod's, as JobSet's webhook counts
    for made in (f"{base}-{number - 1}", longest, f"{base}-config"):
        assert len(made) <= 63
        assert DNS_1035.fullmatch(made)


def test_names_tell_sweeps_apart_and_nothing_else() -> None:
    alike = ["a-b", "a.b", "A-b", "a_b", "a-b-", "x" * 60, "x" * 61]
    sweeps = {
        slices.base_name(job(sweep_name=name, store_path=path))
        for name in alike
        for path in ("gs://bucket", "gs://other")
    }
    assert len(sweeps) == 2 * len(alike)
    same = {
        slices.base_name(job(workers=workers, runs=9, store_path=f"gs://bucket{end}"))
        for workers in (1, 5)
        for end in ("", "/")
    }
    assert len(same) == 1


# Settings


@pytest.mark.parametrize("each", slices.SLICES, ids=lambda each: each.accelerator)
def test_a_slice_has_all_its_chips_on_its_hosts_and_a_device_that_the_plan_knows(each: slices.TpuSlice) -> None:
    assert each.hosts * each.chips_per_host == each.chips
    assert each.accelerator.rpartition("-")[2] == str(each.chips * each.generation.counted)
    name, memory = load("system=vm", f"accelerator={each.accelerator}", "project=p", "zone=z").device(
        job(mesh=config.Mesh())
    )
    assert memory is not None
    assert devices.peak_flops(name) is not None


# cloud.google.com/tpu/docs/v5e, /v6e, /v5p, /v4 and …/kubernetes-engine/docs/concepts/plan-tpus, a line of each table
@pytest.mark.parametrize(
    ("accelerator", "topology", "hosts", "machine", "memory"),
    [
        ("v5litepod-1", "1x1", 1, "ct5lp-hightpu-1t", 16e9),
        ("v5litepod-8", "2x4", 1, "ct5lp-hightpu-8t", 16e9),
        ("v5litepod-16", "4x4", 4, "ct5lp-hightpu-4t", 16e9),
        ("v5litepod-256", "16x16", 64, "ct5lp-hightpu-4t", 16e9),
        ("v6e-8", "2x4", 1, "ct6e-standard-8t", 32e9),
        ("v6e-32", "4x8", 8, "ct6e-standard-4t", 32e9),
        ("v5p-8", "2x2x1", 1, "ct5p-hightpu-4t", 95e9),
        ("v5p-128", "4x4x4", 16, "ct5p-hightpu-4t", 95e9),
        ("v4-32", "2x2x4", 4, "ct4p-hightpu-4t", 32e9),
    ],
)
def test_slices_as_google_describes_them(
    accelerator: str, topology: str, hosts: int, machine: str, memory: float
) -> None:
    found = slices.find(accelerator)
    assert (found.topology, found.hosts, found.machine) == (topology, hosts, machine)
    assert on_gke(accelerator=accelerator).device(job(mesh=config.Mesh()))[1] == memory


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["system=gke", "accelerator=v5litepod-16"], "system gke needs image"),
        (["system=vm", "accelerator=v5litepod-16"], "system vm needs project and zone"),
        (["system=vm", "accelerator=v5litepod-16", "project=p", "zone=z", "queue=q"], "queue is of system gke"),
        (["system=gke", "accelerator=v5litepod-16", "image=i", "zone=z"], "zone is of system vm"),
        (["system=gke", "accelerator=v5litepod-17", "image=i"], "choose one of v5litepod-1, v5litepod-4, v5litepod-8,"),
        (["system=gke", "accelerator=v2-8", "image=i"], "no TPU slice known here"),
        (
            ["system=gke", "accelerator=v4-8", "image=i", "service_account=me@p.iam.gserviceaccount.com"],
            "is no name of K",
        ),
        (["system=gke", "accelerator=v4-8", "image=i j"], "image"),
        (["system=gke", "accelerator=v4-8", "image=i", "queue=Q"], "queue"),
        (["system=gke", "accelerator=v4-8", "image=i", "text=texts/"], "text"),
        (["system=slurm", "accelerator=v4-8"], "system"),
        (["accelerator=v4-8"], "system"),
    ],
)
def test_wrong_settings_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        load(*settings)


@pytest.mark.parametrize("path", ["/home/me/results", "results", "s3://bucket/x", "gs://", "gs:/bucket/x", "gs://b\n"])
def test_a_store_that_slices_do_not_see_is_refused(path: str) -> None:
    for ask in (on_gke().device, on_gke().describe):
        with pytest.raises(ValueError, match="give --store gs://BUCKET/FOLDER"):
            ask(job(store_path=path))


@pytest.mark.parametrize(
    ("accelerator", "mesh", "remedy"),
    [
        ("v5litepod-16", config.Mesh(data=2, fsdp=4), "choose a slice that it fills (v5litepod-8)"),
        ("v5litepod-16", config.Mesh(data=32), "(v5litepod-32)"),
        ("v5litepod-16", config.Mesh(fsdp=3), "no slice of this kind has so many"),
        ("v5p-8", config.Mesh(fsdp=8), "(v5p-16, v5p-32"),
    ],
)
def test_a_mesh_that_leaves_chips_idle_or_lacks_some_is_refused(
    accelerator: str, mesh: config.Mesh, remedy: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(remedy)):
        on_gke(accelerator=accelerator).device(job(mesh=mesh))


@pytest.mark.parametrize("mesh", [config.Mesh(), config.Mesh(fsdp=16), config.Mesh(data=4, fsdp=2, tensor=2)])
def test_a_mesh_that_fills_the_slice_is_taken(mesh: config.Mesh) -> None:
    assert on_gke().device(job(mesh=mesh)) == ("TPU v5 lite", 16e9)


def test_a_tracker_whose_secret_no_worker_would_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"WANDB_API_KEY, which is never written .* --cluster secret=NAME"):
        on_gke().describe(job(secrets=("WANDB_API_KEY",)))
    on_vms = load("system=vm", "accelerator=v5litepod-16", "project=p", "zone=z", "secret=keys")
    with pytest.raises(ValueError, match="A and B, and a secret of Secret Manager holds one value"):
        on_vms.describe(job(secrets=("A", "B")))


def test_what_the_sweep_file_imports_is_sent_with_it(tmp_path: Path) -> None:
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "deep.py").write_text("import mine\n")
    texts = {"mine.py": "x = 1\n", "sweep.py": "import shapes.deep\n", "other.py": "y = 2\n"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    asked = job(config_path=tmp_path / "sweep.py")
    config_map, jobset, _ = documents(on_gke(), asked)
    check_schema(config_map)
    check_schema(jobset)
    (volume,) = [each["configMap"] for each in pod(jobset)["volumes"] if "configMap" in each]
    sent = {each["path"]: config_map["data"][each["key"]] for each in volume["items"]}
    expected = {"sweep.py": texts["sweep.py"], "mine.py": texts["mine.py"], "shapes/deep.py": "import mine\n"}
    assert sent == expected
    assert pod(jobset)["containers"][0]["command"][-2:] == ["--config", "/etc/scaling/sweep.py"]
    vms = load("system=vm", "accelerator=v5litepod-16", "project=p", "zone=z")
    assert {name.removeprefix("sweep/"): text for name, text in vms.files(asked).items() if "/" in name} == expected
    (tmp_path / "mine.py").write_text("#" * 2_000_000)
    with pytest.raises(ValueError, match=r"mine.py.* cannot be sent as a ConfigMap, .*install the modules in the"):
        on_gke().describe(asked)


def test_one_slice_where_nobody_says_and_at_most_one_a_run() -> None:
    assert len(jobsets(on_gke(), job(workers=None))) == 1
    assert len(jobsets(on_gke(), job(workers=9, runs=3))) == 3
    assert on_gke().describe(job(runs=0)) == "nothing: every run has a result"
    with pytest.raises(ValueError, match="ask for 1000 or less"):
        on_gke().describe(job(workers=1001, runs=2000))


def test_start_writes_what_describe_says_and_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = on_gke(f"out={tmp_path}/my files")
    settings.start(job())
    folder = tmp_path / "my files" / "isoflop.v2"
    assert [path.name for path in folder.iterdir()] == ["jobset.yaml"]
    assert settings.describe(job()).partition("\n")[2] == (folder / "jobset.yaml").read_text("utf-8")
    told = capsys.readouterr().out
    assert f"kubectl apply -f '{folder}/jobset.yaml'" in told
    assert "scaling status isoflop.v2 --store gs://my-bucket/scaling --follow" in told
