"""Experiments in the field: races over machines of many places, driven through Ansible.

The controller (:mod:`lab.field.world`) is whoever types ``deploy/run``; on the machines run the
desk (:mod:`lab.traced_desk`), the referee (:mod:`lab.field.referee`) and the clients
(:mod:`lab.geo_crowd`), each as a systemd unit of ``deploy/units``. Between them go the small JSON
files of :mod:`lab.field.orders`.
"""
