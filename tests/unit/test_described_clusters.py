"""Clusters as they are written, and the catalogue that their devices come from."""

import pytest

from ntkpipe.configs.cluster import ClusterConfig
from ntkpipe.configs.described import cluster_names, load_catalogue, load_cluster, shipped_catalogue
from ntkpipe.configs.errors import ConfigError


def test_a_short_form_gives_nodes_of_one_device_each():
    (group,) = load_cluster("8xh100").groups
    assert (group.name, group.nodes, group.devices_per_node, group.num_workers) == ("h100", 8, 1, 8)
    assert group.worker_bytes == 80e9
    assert group.share == 1


def test_a_short_form_can_say_how_many_devices_a_node_has_and_where_runs_live():
    cluster = load_cluster("2x8xh100,4xcpu@s3")
    gpus, cpus = cluster.groups
    assert (gpus.nodes, gpus.num_workers) == (2, 16)
    assert (cpus.cpus, cpus.workers_per_node, cpus.threads, cpus.share) == (16, 8, 2, 1.0)
    assert cluster.num_workers == 16 + 32
    assert cluster.storage_name == "s3"
    assert cluster.storage == shipped_catalogue().storage("s3")


def test_a_node_with_fewer_devices_has_its_share_of_cores_and_memory():
    one, eight = load_cluster("1xh100,1x8xh100").groups
    assert (one.name, eight.name) == ("h100-1", "h100-2")
    assert 8 * one.cpus == eight.cpus
    assert 8 * one.node_bytes == eight.node_bytes


def test_groups_have_names_that_differ_whatever_they_were_called():
    groups = [{"nodes": 1, "device": "cpu", "name": name} for name in ("a", "a", "a-1", "b")]
    found = [group.name for group in load_cluster(ClusterConfig.model_validate({"groups": groups})).groups]
    assert found == ["a-2", "a-3", "a-1", "b"]


def test_more_workers_than_gpus_share_them():
    config = ClusterConfig.model_validate({"groups": [{"nodes": 1, "device": "t4", "workers_per_node": 2}]})
    (group,) = load_cluster(config).groups
    assert group.share == 0.5
    assert group.worker_bytes == 8e9


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("8h100", "NODESxDEVICE"),
        ("0xh100", "greater than or equal to 1"),
        ("2xh10", "did you mean 'h100'"),
        ("2xh100@s4", "unknown storage 's4'"),
        ("laptp", "did you mean 'laptop'"),
        ("missing.yaml", "does not exist"),
    ],
)
def test_what_is_no_cluster_is_refused_with_a_hint(spec, expected):
    with pytest.raises(ConfigError, match="(?s).*" + expected):
        load_cluster(spec)


def test_a_file_describes_a_cluster_with_devices_and_storage_of_its_own(tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text(
        """
name: ours
groups:
  - {nodes: 3, device: fast, workers_per_node: 2, memory: 10GiB, price_per_hour: 2.5, hours_between_failures: 24}
storage: {source: guess, worker_read: 1e8, worker_write: 1e8, total_read: 1e9, total_write: 1e9,
          request_seconds: 0.01, total_requests: 100, commits: 10, capacity: 5TB}
catalogue:
  devices:
    fast: {kind: cpu, source: guess, cores: 8, float32_flops: 1e12, float64_flops: 5e11, bytes: 1e11,
           fft_flops: 1e11, scatters: 1e10, launch_seconds: 1e-5, node_cpus: 8, node_memory: 64GiB}
"""
    )
    cluster = load_cluster(str(file))
    (group,) = cluster.groups
    assert (group.num_workers, group.threads, group.share) == (6, 4, 0.5)
    assert group.worker_bytes == int(0.9 * 10 * 2**30 / 2)
    assert cluster.price_per_hour == 7.5
    assert cluster.storage.capacity == 5e12


def test_a_misspelled_key_of_a_cluster_file_is_named(tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text("groups: [{node: 3, device: h100}]")
    with pytest.raises(ConfigError, match=r"did you mean 'nodes'"):
        load_cluster(str(file))


def test_entries_of_a_users_catalogue_come_before_those_that_ship(tmp_path):
    file = tmp_path / "catalogue.yaml"
    text = "{kind: gpu, source: mine, float32_flops: 1, float64_flops: 1, bytes: 1, fft_flops: 1, scatters: 1"
    file.write_text(f"devices: {{h100: {text}, launch_seconds: 1, memory: 1GB, node_cpus: 1, node_memory: 1GB}}}}")
    assert load_catalogue(str(file)).device("h100").source == "mine"
    assert load_catalogue(str(file)).device("t4") == shipped_catalogue().device("t4")


def test_the_catalogue_has_the_usual_devices_and_says_which_figures_were_measured():
    catalogue = shipped_catalogue()
    assert set(catalogue.devices) >= {"cpu", "cpu2", "h100", "h200", "a100-40", "a100-80", "l4", "t4"}
    assert set(catalogue.storages) >= {"local-disk", "shared-disk", "s3", "gcs"}
    for name, entry in (catalogue.devices | catalogue.storages).items():
        assert entry.measured != ("not measured" in entry.source), name


def test_the_rates_of_two_cores_are_those_that_routes_are_chosen_by():
    from ntkpipe.workers.jacobians.rates import CPU

    device = shipped_catalogue().device("cpu2")
    assert (device.float32_flops, device.bytes, device.fft_flops) == (CPU.flops, CPU.bytes, CPU.fft_flops)
    assert (device.scatters, device.launch_seconds, device.cores) == (CPU.scatters, CPU.launch_seconds, 2)


def test_every_cluster_that_ships_can_be_used():
    assert cluster_names()
    for name in cluster_names():
        assert load_cluster(name).name == name
