"""What `ci/mindspeed.sh` runs on a real MindSpeed; not collected by pytest, for CI has no MindSpeed."""
