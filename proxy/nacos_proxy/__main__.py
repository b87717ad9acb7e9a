"""`python -m nacos_proxy` is `nacos-proxy`."""

from nacos_proxy.cli.main import main

if __name__ == "__main__":
    main(prog_name="nacos-proxy")
