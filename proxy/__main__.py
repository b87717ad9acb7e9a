"""`python -m proxy` is `nacos-proxy`."""

from proxy.cli import main

if __name__ == "__main__":
    main(prog_name="nacos-proxy")
